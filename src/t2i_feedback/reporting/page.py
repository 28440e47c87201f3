"""The report: evidence in, one HTML page out that needs nothing but itself.

What the page may load or run is fixed by its content security policy: its own style and script, known by their
digests, and images that stand in it. Whatever else a text from outside might ask for is refused by the browser.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from t2i_feedback.reporting import (
    alarm,
    comparisons,
    gallery,
    grids,
    judges,
    loops,
    pairs,
    paper,
    plots,
    tables,
    training,
    verdict,
)
from t2i_feedback.reporting.before import Before
from t2i_feedback.reporting.evidence import Evidence

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "report.html.j2", HERE / "report.css", HERE / "report.js"


def render(evidence: Evidence, before: Before | None = None) -> str:
    """The whole page; with what differs from an earlier run where that is given. Jinja escapes every text in it."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT))
    run = list(evidence.arms.values())
    p = evidence.settings
    return environment.get_template(TEMPLATE).render(
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
        before=before,
        stamp=p.report.stamp,
        lead=verdict.lead(evidence),
        headline=verdict.headline(evidence),
        verdicts=verdict.verdicts(evidence),
        arms=tables.arms_table(run),
        arm_plots=pairs.arm_plots(evidence),
        glossary=tables.glossary(),
        stage1=pairs.comparison_table(comparisons.stage1(evidence)),
        stage2=pairs.comparison_table(comparisons.stage2(evidence)),
        kept=pairs.kept_sentences(evidence),
        preferred=pairs.preferred_sentence(evidence.preferred),
        loops=loops.loop_table(run),
        loop_plots=loops.loop_plots(run),
        loop_sentences=loops.loop_sentences(evidence),
        paper_tables=[tables.paper_stage1(), tables.our_stage1(run, p.mllm)],
        paper_tables2=[tables.paper_stage2(), tables.our_stage2(run, p.model)],
        apart=[tables.apart_table(arm, run[0]) for arm in evidence.apart.values()],
        cards=tables.cards_table(run),
        number_cards=tables.number_cards(run),
        paper_protocol=paper.PROTOCOL,
        extractor=p.extractor,
        arm_labels=[arm.label for arm in run],
        grid=gallery.image_grid(evidence, run, grids.spread_out(grids.shared_captions(evidence), p.report.grid)),
        stories=gallery.told(evidence),
        told_arm=gallery.told_arm().label,
        pairs=gallery.pairs(evidence),
        curves=[plots.reward_curve(evidence.history), *training.epoch_curves(evidence)] if evidence.history else [],
        alarms=alarm.alarms(evidence.history, p.epochs),
        reward_text=training.reward_text(evidence),
        feedback_text=training.feedback_text(evidence),
        feedback_curves=[plots.reward_by_calls(evidence.history)] if evidence.history else [],
        judge_plots=[judges.image(name, path) for name, path in evidence.judge_plots.items()],
        judges=judges.numbers_table("judge", judges.judge_numbers(evidence)),
        validator_plots=[judges.image(name, path) for name, path in evidence.validator_plots.items()],
        validator=judges.numbers_table("validator", {p.mllm: evidence.validator_metrics}),
        validator_text=judges.validator_text(evidence),
        preference=p.preference,
        seed=p.seed,
    )


def policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, images that stand in the page, and no address at all."""
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
