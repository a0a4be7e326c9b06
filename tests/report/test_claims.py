"""A claim says beforehand how it is judged; what cannot be meant is refused in one line."""

import dataclasses
import json
import re

import pytest

from experiments.errors import UserError
from experiments.report.claims import Claim, check, declare
from experiments.report.evidence import best_of, final, paired

GAIN = Claim(
    "gain", "the penalty helps", "a paper", "our question", "direction",
    paired("fiedler", "none", protocol="mnist"), direction=1, smallest_effect=0.5, largest_n=20,
)  # fmt: skip
NUMBER = Claim(
    "number", "lambda_2", "us", "our reference", "deterministic",
    final("lambda_2", arm="net", protocol="untrained"), value=5.629, tolerance=0.006,
    command="python -m experiments reproduce fiedler",
)  # fmt: skip
KNOWN = {"mnist": {"none", "fiedler"}, "untrained": None}


def changed(claim, **fields):
    return dataclasses.replace(claim, **fields)


@pytest.mark.parametrize(
    "claim, fields, needed",
    [
        (GAIN, {"origin": "published"}, "citation="),
        (GAIN, {"smallest_effect": None}, "smallest_effect="),
        (GAIN, {"smallest_effect": 0.0}, "smallest_effect="),
        (GAIN, {"largest_n": 0}, "largest_n="),
        (GAIN, {"direction": 0}, "direction="),
        (GAIN, {"type": None}, "reason="),
        (GAIN, {"type": "stochastic", "direction": 0}, "value="),
        (GAIN, {"tolerance": 0.1}, "tolerance="),
        (NUMBER, {"tolerance": None}, "tolerance="),
        (NUMBER, {"value": None}, "value="),
        (NUMBER, {"command": ""}, "command="),
        (NUMBER, {"family": "control"}, "control"),
        (NUMBER, {"direction": 1}, "direction="),
        (NUMBER, {"spread": 0.1, "reference_n": 1}, "reference_n="),
    ],
)
def test_a_claim_that_cannot_be_judged_names_itself_and_the_field(claim, fields, needed):
    with pytest.raises(UserError, match=f"claim '{claim.id}': .*{re.escape(needed)}"):
        changed(claim, **fields)


def test_an_exact_reference_needs_no_replications():
    changed(NUMBER, type="stochastic", tolerance=None, spread=0.0, smallest_effect=1, largest_n=9)


def test_claims_of_known_arms_pass():
    check([GAIN, NUMBER], KNOWN)


def test_an_id_belongs_to_one_claim():
    with pytest.raises(UserError, match="claim 'gain' is declared 2 times"):
        check([GAIN, NUMBER, GAIN], KNOWN)


@pytest.mark.parametrize(
    "evidence, told",
    [
        (paired("fielder", "none", protocol="mnist"),
         "claim 'gain': no preset has an arm 'fielder' in protocol 'mnist'; "
         "did you mean 'fiedler'?"),
        (paired("fiedler", best_of("none", "nine", protocol="mnist"), protocol="mnist"),
         "claim 'gain': no preset has an arm 'nine' in protocol 'mnist'; did you mean 'none'?"),
        (paired("fiedler", "none", protocol="minst"),
         "claim 'gain': no preset has a protocol 'minst'; did you mean 'mnist'?"),
    ],
)  # fmt: skip
def test_evidence_of_an_arm_that_no_preset_has_is_refused(evidence, told):
    with pytest.raises(UserError) as failure:
        check([changed(GAIN, evidence=evidence)], KNOWN)
    assert failure.value.message == told


def test_what_a_study_measures_only_its_run_can_tell():
    for protocol in ("untrained", "untrained/linear"):
        check([changed(NUMBER, evidence=final("x", arm="any", protocol=protocol))], KNOWN)


@pytest.fixture
def declared(tmp_path):
    path = tmp_path / "claims.json"
    return lambda *claims: declare(claims, path)


def test_the_hash_is_of_the_content_and_not_of_the_order(declared):
    first = declared(GAIN, NUMBER)
    assert declared(NUMBER, GAIN) == first and first.changes == ()
    assert re.fullmatch("[0-9a-f]{64}", first.sha256)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Claim)])
def test_any_field_changes_the_hash(field, tmp_path):
    values = {
        "origin": "released code", "type": "stochastic", "family": "control", "direction": -1,
        "evidence": paired("none", "fiedler", protocol="mnist"), "value": 3.0, "spread": 0.25,
        "reference_n": 7, "smallest_effect": 0.25, "largest_n": 9, "tolerance": 0.5,
    }  # fmt: skip
    # As an edit of the file would, without the rules of a whole claim.
    edited = dataclasses.replace(GAIN)
    object.__setattr__(edited, field, values.get(field, "other words"))
    path = tmp_path / "claims.json"
    first, second = declare([GAIN], path), declare([edited], path)
    assert second.sha256 != first.sha256 and len(second.changes) == (2 if field == "id" else 1)


def test_later_reports_say_what_changed_since_the_first(declared):
    declared(GAIN, NUMBER)
    extra = changed(GAIN, id="extra")
    for _ in range(2):  # the first declaration stays
        told = declared(changed(GAIN, smallest_effect=0.1, largest_n=40), extra)
        assert told.changes == (
            "extra: added",
            "number: removed",
            "gain: smallest_effect was 0.5, is 0.1; largest_n was 20, is 40",
        )


def test_other_arms_are_other_evidence(declared):
    declared(GAIN)
    (line,) = declared(changed(GAIN, evidence=paired("none", "fiedler", protocol="mnist"))).changes
    assert line.startswith("gain: evidence was") and '"kind": "Paired"' in line


def test_a_damaged_declaration_is_not_replaced(tmp_path):
    path = tmp_path / "claims.json"
    declare([GAIN], path)
    path.write_text(json.dumps({"claims": {}}))
    with pytest.raises(UserError, match="claims.json is damaged or was edited; remove it to"):
        declare([GAIN], path)
    assert json.loads(path.read_text()) == {"claims": {}}
