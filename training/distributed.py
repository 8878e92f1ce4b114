"""Several processes that train one network together: what torchrun started, and what they tell one another.

    torchrun --nproc-per-node 4 train.py --dataset market1501                       # one machine, a process per GPU
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py ...    # on each of 2

A run is the same run on any number of processes: all of them draw the same batches of --batch-size and take their part
of each, so a run can be resumed on another number of them. Gradients are averaged by DistributedDataParallel, losses
that compare images see those of all processes, and features are extracted and ranked in parts. The first process, rank
0, prints and writes. Without torchrun there is one process, and what stands here gives back what it gets.
"""

import contextlib
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

DAY = timedelta(days=1)  # others wait that long while the first process of a machine decodes a data set
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process


def launched():
    """Whether torchrun, or something that sets the same variables, started this process."""
    return all(name in os.environ for name in STARTED)


def rank():
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank():
    """The number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def world_size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def pick_gpu(name):
    """The device of this process, for --device `name`. ValueError where there are fewer GPUs than processes."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ValueError(f"--device {name}: torchrun gives each process a GPU of its own, give auto (or cpu)")
    if local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank()} of this machine has no GPU, torch sees {torch.cuda.device_count()}: start at most "
            "that many (--nproc-per-node), or train on --device cpu"
        )
    return torch.device("cuda", local_rank())


@contextlib.contextmanager
def group(device, seconds):
    """Inside, the processes that torchrun started form a group; one that does not answer in time ends all others.

    seconds: how long an exchange may take. Messages of the other ranks go nowhere, but for errors.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        with silent_others():
            yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_broken(error):
            raise
        raise ConnectionError(
            f"another process ended, or did not answer within --timeout {seconds:g} s "
            f"({str(error).strip().splitlines()[0]}). Training goes on from the run's last.pth, if it got so far: "
            "--resume goes on, on any number of processes"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):  # others may be gone
            dist.destroy_process_group()


def is_broken(error):
    """Whether an exchange failed for the sake of another process; torch has no type of its own for gloo's."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "timed out", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


@contextlib.contextmanager
def silent_others(errors=False):
    """Inside, processes but the first print nothing. errors: nor errors, and what they raise waits for the first's."""
    with contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            if errors:
                stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except BaseException:
            if rank() > 0 and errors:
                time.sleep(3)  # torchrun ends all when one ends: the first speaks before, where it finds the same
            raise


@contextlib.contextmanager
def first_on_machine():
    """The body runs in the first process of each machine, then in the others: they find what it left in files."""
    if local_rank() > 0:
        wait_patiently()
    yield
    if local_rank() == 0:
        wait_patiently()


def wait_patiently():
    """Until all processes are here, however long one of them works alone: --timeout is for exchanges."""
    if world_size() > 1:
        patient = dist.new_group(backend="gloo", timeout=DAY)
        dist.barrier(patient)
        dist.destroy_process_group(patient)


# ----------------------------------------------------------------------------------------------------------------------
# Parts, and what is put together of them


def part(length):
    """The slice of `length` things that is this process's; all parts are equal where that is possible."""
    if world_size() == 1:
        return slice(0, length)
    return slice(length * rank() // world_size(), length * (rank() + 1) // world_size())


class Gather(torch.autograd.Function):
    """Rows of all processes, in order of the ranks; on the way back each gets the sum of the gradients of its rows."""

    @staticmethod
    def forward(ctx, rows):
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[part(len(gradient))]


def gather(rows):
    """(B / W, ...) of each of W processes, the same number in each -> (B, ...) in all, with gradients."""
    return Gather.apply(rows) if world_size() > 1 else rows


@torch.no_grad()
def gather_parts(rows):
    """(N_r, ...) of each process, their numbers may differ -> all of them, in order of the ranks. Without gradients."""
    if world_size() == 1:
        return rows
    lengths = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    blocks = gather(padded).split(max(lengths))
    return torch.cat([block[:length] for block, length in zip(blocks, lengths, strict=True)])


@torch.no_grad()
def average(values):
    """The mean of a tensor over the processes, in all of them."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def average_gradients(parameters):
    """Replaces the gradients of parameters that no DistributedDataParallel holds by their mean over the processes."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(average(parameter.grad))


def agree(flag):
    """Whether `flag` is true in any process. Over the CPU: a GPU goes on with its work."""
    if world_size() == 1:
        return flag
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


def from_first(function):
    """What the function gives in the first process, in all of them, however long it takes there."""
    if world_size() == 1:
        return function()
    found = [function() if rank() == 0 else None]
    wait_patiently()
    dist.broadcast_object_list(found, 0)
    return found[0]


@torch.no_grad()
def copy_from_first(module):
    """Gives all processes the weights and statistics of the first: batch norms saw another part in each."""
    if world_size() > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


def parallel(runner, device, find_unused=False):
    """The network whose backward pass averages gradients over the processes; itself where there is one process.

    It holds on to which parameters train, so it is made anew when that has changed. find_unused: where some that train
    get no gradient.
    """
    if not dist.is_initialized():
        return runner
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(runner, device_ids=ids, find_unused_parameters=find_unused)


def complain(error, more=""):
    """Prints the line about an error, with the rank where there are several."""
    print(f"{f'rank {rank()}: ' if launched() else ''}error: {error}{more}", file=sys.stderr)


def leave(code):
    """Ends this process. One of several leaves at once: torch 2.12 aborts now and then while Python takes them down."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
