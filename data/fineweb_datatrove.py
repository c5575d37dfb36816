"""The same shards from many processes or many machines: data/fineweb.py on datatrove's executors.

    python data/fineweb_datatrove.py --local DIR --out OUT --workers 8
    python data/fineweb_datatrove.py --sample 100BT --out OUT --slurm PARTITION --workers 50

It needs `pip install datatrove` and, with Slurm, an --out that all machines share. First, one task
per parquet file writes that file's tokens, with eot before each document, to OUT/parts. Then one
task cuts the parts, in file order, into shards. A document's tokens depend only on its text, so
every shard is byte-identical to one made on a single machine. Both steps can be resumed after a
kill. OUT needs twice the space of the shards while the parts exist.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import os
import sys
from pathlib import Path

from nanogpt_lib.recipes.datatrove_steps import CutShards, TokenizeFiles
from nanogpt_lib.recipes.fineweb import choose_source, fineweb_parser
from nanogpt_lib.recipes.sources import parse, verify
from nanogpt_lib.support.cli import run_recipe
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import make_folder
from nanogpt_lib.support.places import ROOT


def main() -> None:
    """Build the two steps and run them here, or submit them."""
    parser = fineweb_parser("fineweb_datatrove.py", __doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="tasks at a time")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit to Slurm instead")
    parser.add_argument("--time", default="24:00:00", help="Slurm's limit per task (24:00:00)")
    args = parse(parser)
    if args.verify:
        return verify(args.out)
    try:
        from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    except ImportError as error:
        raise UserError("needs datatrove: pip install datatrove") from error
    args.out = args.out.resolve()
    make_folder(args.out)
    tasks, first = len(choose_source(args)[1].files), None
    logs = args.out.with_name(f"{args.out.name}_logs")
    for step, count in ((TokenizeFiles(args), tasks), (CutShards(args), 1)):
        options = dict(
            pipeline=[step], tasks=count, depends=first, logging_dir=str(logs / step.name)
        )
        workers = min(args.workers, count)
        if args.slurm:
            path = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"
            options |= dict(
                partition=args.slurm, time=args.time, env_command=path, mem_per_cpu_gb=4
            )
            first = SlurmPipelineExecutor(
                workers=workers, job_name=f"fineweb-{step.name}", **options
            )
        else:
            first = LocalPipelineExecutor(workers=workers, **options)
    first.run()  # and what it depends on
    return None


if __name__ == "__main__":
    run_recipe("fineweb_datatrove.py", main)
