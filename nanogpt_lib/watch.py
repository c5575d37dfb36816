"""A run's verdict in its own output: what doctor.py would say, at each evaluation."""

from dataclasses import asdict

from nanogpt_lib.diagnosis import diagnose
from nanogpt_lib.published import band, why_not_comparable
from nanogpt_lib.run import Run


def judge(run: Run, val_loss: float) -> None:
    """Say what is abnormal, each kind once, and at the end whether anything is.

    A run that can be compared with llm.c's is told that run's loss. `val_loss` is the evaluation's,
    which is not in the log yet. Only rank 0 has a log.
    """
    if not run.log:
        return
    config, step = run.config, run.step
    scratch, settings = config.init_from == "scratch", asdict(config)
    vocab_size = run.meta["vocab_size"] if scratch else None
    records = [*run.log.records, {"step": step, "val_loss": val_loss}]
    found = diagnose(records, vocab_size, settings) if step else []
    for symptom in found:
        if symptom.kind not in run.symptoms:
            run.say(f"step {step:5d} | {symptom.line()}")
    run.symptoms |= {symptom.kind for symptom in found}
    normal = band(step * config.total_batch_size) if step else None
    if normal and not why_not_comparable(settings, vocab_size):
        run.say(f"step {step:5d} | llm.c's run had {normal[0]:.2f}; normal up to {normal[1]:.2f}")
    sick = [symptom.kind for symptom in found if not symptom.past]
    if step and step >= config.max_steps:
        run.say(f"step {step:5d} | verdict: {', '.join(sick) or 'no symptoms'} (doctor.py)")
