"""What is said of a comparison: the advice, and the assumptions."""

from __future__ import annotations

from launcher.catalog.offers import Catalog, load_offers
from launcher.planning.planner import Planner
from launcher.request import LaunchRequest
from tests.support.plans import A100, A100_ONLY, RECIPE, plan


def test_without_a_deadline_the_advice_says_what_patience_saves(snapshot: Catalog) -> None:
    request = LaunchRequest(recipe="notus-7b-dpo", **A100_ONLY)  # type: ignore[arg-type]
    offers = load_offers(snapshot, [A100], request.clouds)
    one_zone = [offer for offer in offers if not offer.spot or offer.zone == "me-west1-a"]
    result = Planner(request, RECIPE, one_zone, "test").compare()
    assert any(line.startswith("with --deadline 24h GCP spot A100:8 would wait for spot") for line in result.advice)


def test_egress_is_said_of_the_cloud_that_pays_it(snapshot: Catalog) -> None:
    _, result = plan(snapshot, bucket="s3://b", gpus=(A100,), clouds=("aws", "lambda"))
    (line,) = [line for line in result.advice if line.startswith("restores")]
    assert "restores from Amazon S3 in Lambda are $" in line
    assert "or one in" not in line, "the bucket is in AWS already"
    _, far = plan(snapshot, deadline_h=24.0, bucket="s3://b", clouds=("gcp",), gpus=(A100,))
    assert any("(Cloudflare R2), or one in GCP, saves that" in line for line in far.advice)


def test_a_bucket_that_is_assumed_is_said_so(snapshot: Catalog) -> None:
    def told(bucket: str | None) -> str:
        _, result = plan(snapshot, bucket=bucket, **A100_ONLY)
        return next(line for line in result.assumptions if line.startswith("checkpoints"))

    assert "assumed, as no --bucket is given" in told(None)
    assert "assumed" not in told("gs://b")
