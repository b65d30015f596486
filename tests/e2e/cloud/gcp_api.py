"""Google's compute, IAM and resource manager APIs, as far as SkyPilot 0.14.1 calls them."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from tests.e2e.cloud.world import Machine, Refused, World

PROJECT = "loopback"
ACCOUNT = f"skypilot-v1@{PROJECT}.iam.gserviceaccount.com"
NETWORK = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/networks/default"
GCLOUD = f"""#!/bin/sh
case "$*" in
  "auth list"*) echo {ACCOUNT} ;;
  "services list"*) for name in compute cloudresourcemanager iam tpu storage; do echo $name.googleapis.com; done ;;
esac
"""
"""Google's command, as far as SkyPilot calls it."""
ROLES = ("roles/storage.admin", "roles/compute.admin", "roles/iam.serviceAccountUser", "roles/iam.roleViewer")
STATES = {"booting": "STAGING", "running": "RUNNING", "stopping": "STOPPING", "terminated": "TERMINATED"}

Answer = tuple[int, Any]


class Gcp:
    """The project's APIs over a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._operations: dict[str, dict[str, str] | None] = {}

    def handle(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer | None:
        """Answer one request; None if it isn't for Google."""
        if path == "/token":
            return 200, {"access_token": "loopback-token", "expires_in": 3600, "token_type": "Bearer"}
        if path.startswith("/v1/projects/"):
            return self._project(path.removeprefix("/v1/projects/"), body)
        if path.startswith("/compute/v1/projects/"):
            parts = path.removeprefix("/compute/v1/projects/").split("/")[1:]
            return self._compute(method, parts, query, body)
        return None

    def _project(self, rest: str, body: dict[str, Any]) -> Answer:
        if rest.endswith(":testIamPermissions"):
            return 200, {"permissions": body.get("permissions", [])}
        if rest.endswith(":getIamPolicy"):
            return 200, {"bindings": [{"role": role, "members": [f"serviceAccount:{ACCOUNT}"]} for role in ROLES]}
        if "/serviceAccounts/" in rest:
            return 200, {"projectId": PROJECT, "email": ACCOUNT, "name": rest}
        return 200, {"projectId": PROJECT, "lifecycleState": "ACTIVE", "projectNumber": "1"}

    def _compute(self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]) -> Answer | None:
        if "operations" in parts:
            return 200, self._operation(parts[parts.index("operations") + 1])
        match parts:
            case []:
                return 200, {"name": PROJECT, "commonInstanceMetadata": {"items": []}}
            case ["global", "images", name]:
                return 200, {"name": name, "diskSizeGb": "50"}
            case ["global", "networks", _, "getEffectiveFirewalls"]:
                open_ = {"direction": "INGRESS", "allowed": [{"IPProtocol": "all"}]}
                return 200, {"firewalls": [{**open_, "sourceRanges": [r]} for r in ("10.128.0.0/9", "0.0.0.0/0")]}
            case ["global", "networks"]:
                return 200, {"items": [{"name": "default", "selfLink": NETWORK}]}
            case ["global", "firewalls", *_]:
                return 200, {"items": []} if method == "GET" else self._done()
            case ["regions", region, "subnetworks"]:
                link = f"projects/{PROJECT}/regions/{region}/subnetworks/default"
                return 200, {
                    "items": [{"name": "default", "network": NETWORK, "selfLink": link, "ipCidrRange": "10.77.0.0/24"}]
                }
            case ["zones", _, "reservations"]:
                return 200, {"items": []}
            case ["zones", zone, "instances"]:
                if method == "GET":
                    return 200, {"items": _filtered(query.get("filter", ""), self._in(zone))}
                return 200, self._insert(zone, [body["name"]], body)
            case ["zones", zone, "instances", "bulkInsert"]:
                return 200, self._insert(zone, list(body["perInstanceProperties"]), body["instanceProperties"])
            case ["zones", zone, "instances", name, *action]:
                return self._instance(method, zone, name, action, body)
        return None

    def _instance(self, method: str, zone: str, name: str, action: list[str], body: dict[str, Any]) -> Answer:
        machine = next((machine for machine in self._in(zone) if machine.name == name), None)
        if machine is None:
            message = f"The resource 'projects/{PROJECT}/zones/{zone}/instances/{name}' was not found"
            reason = {"message": "not found", "domain": "global", "reason": "notFound"}
            return 404, {"error": {"code": 404, "message": message, "errors": [reason]}}
        match method, action:
            case "GET", []:
                return 200, _shown(machine)
            case "DELETE", []:
                try:
                    self._world.release(machine)
                except Refused as error:  # not 503, which Google's client tries twelve times
                    reason = {"message": str(error), "domain": "global", "reason": error.code}
                    return 403, {"error": {"code": 403, "message": str(error), "errors": [reason]}}
            case "POST", ["setLabels"]:
                machine.details["labels"] = dict(body["labels"])
        return 200, self._done(zone)

    def _insert(self, zone: str, names: list[str], properties: dict[str, Any]) -> dict[str, Any]:
        model = properties.get("scheduling", {}).get("provisioningModel", "STANDARD")
        items = properties.get("metadata", {}).get("items", [])
        key = next(item["value"] for item in items if item["key"] == "ssh-keys").split(":", 1)[1]
        try:
            for name in names:
                details = {
                    "labels": dict(properties.get("labels", {})),
                    "scheduling": properties.get("scheduling", {}),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%S.000-00:00", time.gmtime()),
                }
                self._world.start("gcp", name, zone, model, key, **details)
        except Refused as error:
            where = f"projects/{PROJECT}/zones/{zone}"
            messages = {
                "quota": ("QUOTA_EXCEEDED", str(error)),
                "capacity": (
                    "ZONE_RESOURCE_POOL_EXHAUSTED",
                    f"The zone '{where}' does not have enough resources available to fulfill the request.  "
                    "Try a different zone, or try again later.",
                ),
            }
            code, message = messages[error.code]
            return self._done(zone, {"code": code, "message": message})
        return self._done(zone)

    def _in(self, zone: str) -> list[Machine]:
        return [machine for machine in self._world.of("gcp") if machine.place == zone]

    def _done(self, zone: str | None = None, error: dict[str, str] | None = None) -> dict[str, Any]:
        name = f"operation-{uuid.uuid4().hex[:12]}"
        self._operations[name] = error
        return {"kind": "compute#operation", "name": name, "status": "RUNNING", "zone": zone}

    def _operation(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = {"kind": "compute#operation", "name": name, "status": "DONE", "progress": 100}
        if error := self._operations.get(name):
            result["error"] = {"errors": [error]}
        return result


def _shown(machine: Machine) -> dict[str, Any]:
    disk = f"projects/{PROJECT}/zones/{machine.place}/disks/{machine.name}"
    return {
        "id": str(machine.number),
        "name": machine.name,
        "status": STATES[machine.state],
        "labels": machine.details["labels"],
        "zone": machine.place,
        "creationTimestamp": machine.details["created"],
        "lastStartTimestamp": machine.details["created"],
        "scheduling": machine.details["scheduling"],
        "labelFingerprint": "x",
        "tags": {"fingerprint": "x"},
        "disks": [{"source": disk, "diskSizeGb": "256"}],
        "networkInterfaces": [{"network": NETWORK, "networkIP": machine.ip, "accessConfigs": [{"natIP": machine.ip}]}],
    }


def _filtered(expression: str, machines: list[Machine]) -> list[dict[str, Any]]:
    """The part of Google's filter language that SkyPilot uses."""
    labels = re.findall(r"labels\.([\w-]+) = ([\w.-]+)", expression)
    states = re.findall(r"status = (\w+)", expression)
    shown = [_shown(machine) for machine in machines]
    return [
        one
        for one in shown
        if all(one["labels"].get(name) == value for name, value in labels) and (not states or one["status"] in states)
    ]
