"""Lambda Cloud's REST API, as far as SkyPilot 0.14.1 calls it."""

from __future__ import annotations

from typing import Any

from tests.e2e.cloud.world import Machine, Refused, World

KEY = "loopback-lambda-key"
REGIONS = ("us-east-1", "us-west-1", "us-south-1")
TYPES = {
    # price in cents per hour, GPUs, vCPUs, GiB: the real ones of 2026-11
    "gpu_8x_a100_80gb_sxm4": (2232, 8, 240, 1800),
    "gpu_8x_a100": (1592, 8, 124, 1800),
    "gpu_1x_a10": (129, 1, 30, 200),
}
STATES = {"booting": "booting", "running": "active", "stopping": "terminating", "terminated": "terminated"}

Answer = tuple[int, Any]


def handle(world: World, method: str, path: str, body: dict[str, Any], headers: Any) -> Answer:
    """Answer one request below /api/v1/."""
    if headers.get("Authorization") != f"Bearer {KEY}":
        return _error(403, "global/invalid-api-key", "API key was invalid, expired, or deleted.")
    if world.is_throttled():
        return _error(429, "global/too-many-requests", "API requests are being rate limited.")
    match method, path:
        case "GET", "instances":
            return 200, {"data": [_shown(machine) for machine in world.of("lambda")]}
        case "GET", "ssh-keys":
            return 200, {"data": [{"id": name, "name": name, "public_key": key} for name, key in world.keys.items()]}
        case "POST", "ssh-keys":
            world.keys[body["name"]] = body["public_key"]
            return 200, {"data": {"id": body["name"], **body}}
        case "GET", "instance-types":
            return 200, {"data": {name: _type(world, name) for name in TYPES}}
        case "GET", "firewall-rules":
            return 200, {"data": []}
        case "PUT", "firewall-rules":
            return 200, {"data": body.get("data", [])}
        case "POST", "instance-operations/launch":
            return _launch(world, body)
        case "POST", "instance-operations/terminate":
            wanted = [world.alive[name] for name in body["instance_ids"] if name in world.alive]
            try:
                for machine in wanted:
                    world.release(machine)
            except Refused as error:
                return _error(500, "global/internal-error", str(error))
            return 200, {"data": {"terminated_instances": [_shown(machine) for machine in wanted]}}
    return _error(404, "global/object-does-not-exist", f"not emulated: {method} {path}")


def _launch(world: World, body: dict[str, Any]) -> Answer:
    keys = "\n".join(world.keys[name] for name in body["ssh_key_names"])
    try:
        machine = world.start("lambda", body["name"], body["region_name"], body["instance_type_name"], keys)
    except Refused as error:
        if error.code == "quota":
            return _error(400, "global/quota-exceeded", str(error))
        return _error(
            400,
            "instance-operations/launch/insufficient-capacity",
            "Not enough capacity to fulfill launch request.",
        )
    return 200, {"data": {"instance_ids": [machine.id]}}


def _shown(machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "name": machine.name,
        "ip": machine.ip,
        "private_ip": machine.ip,
        "status": STATES[machine.state],
        "ssh_key_names": [],
        "region": {"name": machine.place, "description": machine.place},
        "instance_type": {"name": machine.kind},
        "hostname": machine.id,
    }


def _type(world: World, name: str) -> dict[str, Any]:
    price, _, vcpus, memory = TYPES[name]
    regions = [region for region in REGIONS if world.room(region, name) > 0]
    return {
        "instance_type": {
            "name": name,
            "description": name,
            "price_cents_per_hour": price,
            "specs": {"vcpus": vcpus, "memory_gib": memory, "storage_gib": 100},
        },
        "regions_with_capacity_available": [{"name": region, "description": region} for region in regions],
    }


def _error(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message, "suggestion": ""}}
