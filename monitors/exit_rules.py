"""What dying software prints, as data: messages, the class they speak for, and how strongly.

The patterns follow the messages in the sources of PyTorch (c10d, ATen, torchelastic), NCCL, Gloo,
the NVIDIA driver, Slurm, Kubernetes, JAX, DeepSpeed, Megatron-LM and the Python standard library.
"""

from __future__ import annotations

import dataclasses
import re

from monitors.failures import FailureClass as F


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Messages of one strength that speak for one class."""

    failure_class: F
    weight: int
    """Strength as evidence: the heaviest match in a log wins, the first of equals."""
    pattern: re.Pattern[str]
    """Searched in each line."""
    needs: re.Pattern[str] | None = None
    """Must also occur somewhere in the log."""


PROOF = 90
"""The hardware, the kernel or the scheduler says so itself."""
SPECIFIC = 80
"""Printed for this cause only."""
LIKELY = 65
"""Printed for this cause nearly always."""
SYMPTOM = 40
"""What is seen from a distance: true, but the cause may be named elsewhere in the log."""
HINT = 30
"""Believed when there is nothing better."""
AFTERMATH = 10
"""Printed because something else failed; never a root cause while another line matches."""

_TABLE: tuple[tuple[F, int, str, str], ...] = (
    # The GPU. Xid lines are read by number, in exits.py.
    (F.GPU_HARDWARE, PROOF, "", r"""
        fallen off the bus|lost from the bus|GPU is lost|GPU-?\d* (?:has )?disappeared
        uncorrectable (?:ECC|NVLINK ECC)|ECC error.*(?:uncorrect|double.?bit)|double.?bit ECC
        row.?remap\w* (?:failure|failed|pending)|(?:contained|uncontained) (?:ECC|memory) error
        Unable to determine the device handle for GPU|GPU requires (?:a )?reset
        nvml\w*.*Unknown Error|RmInitAdapter failed
        Timeout waiting for RPC from GSP|GSP (?:RPC )?timeout|krcWatchdog
    """),
    (F.GPU_HARDWARE, LIKELY, "", r"""
        hardware slowdown|thermal (?:shutdown|violation)|GPU (?:is )?overheat|power brake
        CUDA (?:error|failure).*(?:hardware stack error|unknown error)|cudaErrorHardwareStackError
        mce: .*Hardware Error|Machine check events logged
        PCIe Bus Error.*(?:Fatal|Uncorrect)|AER:.*fatal
        CUDA-capable device\(s\) is/are busy or unavailable
        silent data corruption|SDC (?:check|detected)
    """),
    (F.GPU_HARDWARE, LIKELY, r"Xid|ECC|dmesg|NVRM", r"""
        unspecified launch failure|an illegal instruction was encountered
    """),
    # Links between the GPUs of a node.
    (F.GPU_INTERCONNECT, PROOF, "", r"""
        SXid|NVSwitch.*(?:error|fatal|fail)|NVLink.*(?:fatal|error|fail|inactive|down|CRC)
        fabric ?manager.*(?:error|fail|degraded)|nvswitch-?audit|(?:multicast|NVLS).*(?:fail|error)
        peer access.*(?:fail|not supported|error)|cudaErrorPeerAccess|invalid P2P
    """),
    # Memory of the GPU.
    (F.CUDA_OOM, SPECIFIC, "", r"""
        (?:CUDA|HIP|XPU|NPU|MPS)\w* ?(?:backend )?out of memory|OutOfMemoryError: (?:CUDA|HIP)
        (?:CUDA|HIP|cuda runtime) (?:error|failure)[^:]*:? ?(?:\d+ )?'?out of memory
        cudaErrorMemoryAllocation|(?:CUBLAS|CUDNN|CUSPARSE)_STATUS_ALLOC_FAILED
        OOM when allocating tensor|Ran out of memory in memory space hbm
        RESOURCE_EXHAUSTED: (?:Out of memory|Attempting to (?:allocate|reserve))
    """),
    # Memory of the host.
    (F.HOST_OOM, PROOF, "", r"""
        oom[-_]kill|Out of memory: Kill(?:ed)? process|OOMKilled|invoked oom-killer|oom_reaper
        Memory cgroup out of memory|Exceeded (?:job|step) memory limit|Detected \d+ oom
        low on resource: memory|(?:killed|evicted|terminated).*(?:memory pressure|low on memory)
        OutOfMemoryError: (?:Task|Worker)
    """),
    (F.HOST_OOM, SPECIFIC, "", r"""
        DefaultCPUAllocator: (?:can't|not enough) (?:allocate )?memory|Cannot allocate memory
        ^MemoryError|_ArrayMemoryError|std::bad_alloc
        Unable to allocate [\d.]+ [KMGT]i?B for an array
    """),
    # Bugs that the device reports.
    (F.CUDA_USER_BUG, SPECIFIC, "", r"""
        device-side assert|\.cuh?:\d+:.*Assertion .* failed
        illegal memory access|misaligned address|CUDA_EXCEPTION_
        invalid (?:device function|configuration argument|program counter)
    """),
    (F.CUDA_USER_BUG, LIKELY, "", r"""
        unspecified launch failure|illegal instruction was encountered
        too many resources requested for launch
        (?:CUBLAS|CUDNN|CUFFT|CUSOLVER)_STATUS_(?:EXECUTION_FAILED|INVALID_VALUE|NOT_SUPPORTED)
        (?:CUBLAS|CUDNN|CUFFT|CUSOLVER)_STATUS_(?:BAD_PARAM|MAPPING_ERROR)
    """),
    # Drivers, libraries, the container.
    (F.DRIVER_OR_SETUP, PROOF, r"dev.shm", r"""
        (?:shm|shared memory).*nccl|nccl-\w+.*No space left
    """),
    (F.DRIVER_OR_SETUP, SPECIFIC, "", r"""
        CUDA driver version is insufficient|driver on your system is too old
        Driver/library version mismatch|NVIDIA-SMI has failed|forward compatibility was attempted
        couldn't communicate with the NVIDIA driver|nvidia-container-cli|CDI device
        no kernel image is available|unsupported toolchain|Unsupported gpu architecture
        not compiled with CUDA|compiled with different CUDA|CUDA_HOME|nvcc.*not found
        system not yet initialized|cudaErrorSystem(?:NotReady|DriverMismatch)
        CUDA\b.*\bError 80[0-4]\b|CUDA (?:unknown error|initialization)|cudaGetDeviceCount
        cannot open shared object file|undefined symbol|version `\w+_[\d.]+' not found|CXXABI
        NCCL version mismatch|mismatched NCCL|Duplicate GPU detected
        Mismatched? (?:CUDA|driver) versions?|unknown device type
        no CUDA-capable device|No CUDA GPUs are available|invalid device ordinal
        Failed to initialize (?:NVML|CUDA)|Unable to (?:initialize|load) (?:NVML|cuDNN|libcu)
        (?:CUDNN|CUBLAS)_STATUS_NOT_INITIALIZED|No socket interface found|memlock
        ibv_(?:reg_mr|create_cq|open_device)\w*.*(?:failed|error)|Call to ibv_\w+ failed
        aws-ofi-nccl.*(?:fail|error)|gdrcopy.*(?:fail|error)
    """),
    # Files.
    (F.STORAGE, PROOF - 2, "", r"""
        No space left on device|StorageFull|Disk quota exceeded|ENOSPC|file system is full
        Stale (?:NFS )?file handle|ESTALE|Input/output error|Remote I/O error|Read-only file system
        Transport endpoint is not connected|nfs: server .* not responding
        LustreError|gpfs.*(?:error|unmount)|\[Errno (?:5|28|30|107|116|121|122)\]
        SlowDown|reduce your request rate|ServiceUnavailable.*(?:S3|storage|blob)
        ^babysit\.errors\.NothingLoadedError
    """),
    (F.STORAGE, LIKELY, "", r"""
        (?:s3fs|gcsfs|botocore|fsspec)\S*.*(?:Timeout|Unavailable|ConnectionError|5\d\d)
        (?:azure|google\.cloud\.storage)\S*.*(?:Timeout|Unavailable|ConnectionError|5\d\d)
        (?:Read|Connect)TimeoutError.*(?:amazonaws|blob\.core|storage\.googleapis)
        EndpointConnectionError
    """),
    # Checkpoints.
    (F.CHECKPOINT_CORRUPT, SPECIFIC, "", r"""
        Error while deserializing header|MetadataIncompleteBuffer|HeaderToo(?:Large|Small)
        InvalidHeader|PytorchStreamReader|failed finding central directory|invalid magic number
        unexpected EOF, expected|corrupt(?:ed)? checkpoint|DATA_LOSS
        (?<!image )\b(?:file|checkpoint|shard)s?\b.*(?:might|may) be (?:corrupt|truncated|incompl)
        (?<!image )\b(?:file|checkpoint|shard)s?\b.*(?:is|are|was) (?:corrupt|truncated|incomplete)
        (?:No such file|FileNotFound|not found|does not exist|missing).*(?:\.metadata|\.distcp)
        (?:No such file|FileNotFound|not found|does not exist|missing).*(?:mp_rank_\d|zero_pp_rank)
        (?:No such file|FileNotFound|not found|does not exist|missing).*(?:optim_states|iter_\d)
        (?:No such file|not found|does not exist|missing).*(?:latest_checkpointed|global_step\d)
        (?:zarr|tensorstore|orbax|ocdbt).*(?:corrupt|truncated|incomplete|not found)
        Unable to (?:synchronously )?open file.*truncated
    """),
    (F.CHECKPOINT_CORRUPT, SPECIFIC, r"checkpoint|ckpt|shard|restore|load", r"""
        (?:checksum|hash|crc32?c?|digest|file size) mismatch
    """),
    (F.CHECKPOINT_CORRUPT, SPECIFIC, r"torch\.load|serialization\.py|checkpoint|ckpt|resum", r"""
        pickle data was truncated|unpickling stack underflow|invalid load key|Ran out of input
        BadZipFile|not a zip file
    """),
    (F.CHECKPOINT_CORRUPT, LIKELY, "", r"""
        (?:checkpoint|ckpt)\b.*(?:incomplete|missing (?:shard|file|rank|partition))
        (?:missing|incomplete) (?:shard|partition).*(?:checkpoint|ckpt)
    """),
    # A sound checkpoint of another model.
    (F.USER_CODE, SPECIFIC, "", r"""
        size mismatch for\b|(?:Missing|Unexpected) key\(s\) in state_dict
        Error\(s\) in loading state_dict
    """),
    # Data.
    (F.DATA_LOADER, LIKELY + 5, "", r"""
        DataLoader worker (?:process \d|\(pid|.*(?:kill|exit|died))|in worker process
        received \d+ items of ancdata
        UnidentifiedImageError|image file is truncated|broken data stream
        unable to (?:open|mmap|resize) (?:shared memory|file) ?(?:object )?</torch
        out of shared memory|insufficient shared memory
    """),
    (F.DATA_LOADER, LIKELY, "", r"""
        JSONDecodeError|ArrowInvalid|ParquetError|UnicodeDecodeError|DatasetGenerationError
        tarfile\.\w*ReadError|zlib\.error|lzma\.LZMAError|gzip.*(?:CRC|BadGzip)|Too many open files
        (?:webdataset|streaming|datasets|tfds|indexed_dataset)\S*.*(?:corrupt|shard .*missing)
        DataCorruption|(?:corrupt|truncated|invalid) (?:record|sample|image|jpeg|tfrecord)
    """),
    (F.DATA_LOADER, SYMPTOM, "", r"""
        \b(?:_queue|queue)\.Empty|data ?loader.*(?:timed? ?out|stall|hang|stuck)|ran out of data
    """),
    # Numbers.
    (F.NUMERICS, LIKELY + 5, "", r"""
        found NaN|NaN (?:detected|loss|encountered)|FloatingPointError
        (?:loss|grad\w*(?: norm)?) (?:is|was|became|=|:|has) ?(?:a )?(?:NaN|inf\b|non-?finite)
        (?:encountered|detected|produced|returned|contains?|has|have|got)\b.{0,30}\bnan\b
        (?:encountered|detected|produced|returned|contains?|has|have|got)\b.{0,30}\binf(?:inity)?\b
        loss scale.*(?:minimum|too small|decrease)|Minimum loss scale
        (?:loss|gradient)s? (?:has )?(?:diverged|exploded|overflow)
        non-?finite (?:loss|grad|norm|value)|(?:loss|norm).*not finite
        isfinite.*(?:assert|fail)|assert.*(?:isfinite|isnan)
    """),
    # Taken away.
    (F.PREEMPTION, PROOF, "", r"""
        (?<!got )\bpreempted\b|NodePreempted|DUE TO (?:PREEMPTION|JOB REQUEUE|TIME LIMIT)
        preemption (?:notice|signal|event)|Preempt(?:ed|ing) by|was reclaimed|Reclaimed by
        spot (?:instance|VM|node).*(?:interrupt|reclaim|terminat|evict)|instance.?action.*terminate
        (?:scheduled|host|node) maintenance|maintenance (?:event|window|reservation)
        TaintManagerEviction|Evict(?:ed|ing|ion)\b(?!.*memory)|NodeShutdown
        node (?:is being |was )?(?:drain(?:ed|ing)|shut ?down)
    """),
    (F.PREEMPTION, SYMPTOM + 10, "", r"""
        Received \d+ death signal|SignalException|got signal: (?:1|2|10|12|15)\b
        (?:Caught signal|received) SIG(?:USR[12]|TERM|HUP)
    """),
    # Meeting.
    (F.RENDEZVOUS, LIKELY, "", r"""
        Address already in use|EADDRINUSE|Rendezvous\w*Error|waiting for clients|Stop_waiting
        rendezvous.*(?:fail|timed? ?out|closed)|Timed out initializing process group
        client socket has (?:timed out|failed to connect)|wait timeout after \d+ms, keys
        workers? (?:to|did not) (?:join|connect)|gai error|Name or service not known
        name resolution|nodename nor servname|cannot be retrieved
        DEADLINE_EXCEEDED.*(?:Barrier|coordination|initialize|RegisterTask)
        (?:PjRT|coordination).*(?:Barrier timed out|barrier.*DEADLINE)
        failed to (?:join|connect to) (?:the )?(?:coordinator|master|quorum)
    """),
    (F.RENDEZVOUS, LIKELY, r"init_process_group|rendezvous|rdzv|TCPStore|c10d", r"""
        store.*(?:connect|get)\w* .*(?:fail|time[d ]?out)|Socket Timeout
        MASTER_(?:ADDR|PORT).*(?:expected|not set|missing)
    """),
    # The network between nodes.
    (F.NETWORK, SPECIFIC - 5, "", r"""
        NET/IB ?:.*(?:completion|error|async|fatal|Port|status=)|vendor err|ibv_poll_cq
        IBV_(?:WC|EVENT)_\w*(?:ERR|EXC|FATAL)|IBV_EVENT_PORT|retry (?:counter )?exceeded
        mlx\d_\w+.*(?:link down|error|lost|timeout|flap)|EFA.*(?:error|unresponsive)
        \b(?:link|port|NIC|carrier) (?:is |has |went )?(?:down|flap|lost)
    """),
    (F.NETWORK, LIKELY - 5, "", r"""
        No route to host|Network is (?:unreachable|down)|Host is down|Connection timed out
        ETIMEDOUT|EHOSTUNREACH
    """),
    (F.NETWORK, SYMPTOM + 5, "", r"""
        NET/(?:Socket|OFI|Plugin).*(?:fail|error)|Proxy Call to rank \d+ failed
        socket\w* ?:? .*connect.*(?:failed|refused)
    """),
    (F.NETWORK, HINT, "", r"""
        NCCL WARN.*Call to \w+ .*failed ?:|ncclRemoteError|ncclSystemError|unhandled system error
        remote process exited or there was a network error
    """),
    # Waiting for one another.
    (F.COLLECTIVE_TIMEOUT, SYMPTOM, "", r"""
        collective operation timeout|watchdog got stuck|Heartbeat monitor timed out
        Timeout at NCCL work|Timed out waiting \d+ms for (?:recv|send)|monitoredBarrier
        Application timeout caused pair closure|Collective.*mismatch
        (?:all_?reduce|all_?gather|reduce_?scatter|broadcast)\b.*\btim(?:ed? ?out|eout)
        (?:barrier|collective|NCCL)\b.*\btim(?:ed? ?out|eout)|stuck.*(?:collective|all-reduce)
    """),
    # What a launcher says of a child; the signal's sender is unknown.
    (F.SIGNAL, HINT, "", r"""
        exitcode: -(?:9|11|7|4|8)\b|exit code:? (?:137|139)\b|Segmentation fault|^Killed$
        exited with signal
    """),
    # What others leave behind.
    (F.CASCADE, AFTERMATH, "", r"""
        closing signal SIG|Connection (?:closed|reset) by|Broken pipe|ECONNRESET|Connection refused
        Socket closed|TCPStore server has shut down|Failed to check the .should dump
        (?:recv|send)(?:Bytes|Value) failed|DistStoreError|heartbeat timeout
        reported a task in error|remote task has failed|set to ERROR in coordination
        Terminating process because|ChildFailedError|Root Cause|worker group failed
        Job step aborted|task.*(?:Terminated|Killed)|STEP .* CANCELLED|MPI_ABORT
        mpirun (?:has exited|noticed)|communicator was aborted|Abort COMPLETE|ncclCommAbort
        another (?:rank|worker|process|task|node)\b.*(?:fail|exit|die|error|abort)
        peer (?:rank|process|worker)s?\b.*(?:fail|exit|die|gone)|returned non-zero exit status
        Some NCCL operations have failed|taking the entire process down|Actor(?:Died|Unavailable)
        leaked (?:semaphore|shared_memory)|destroy_process_group|Signal 15 \(SIGTERM\)
    """),
)  # fmt: skip
"""Class, weight, what must also occur in the log (empty: nothing), and the messages.

The lines of the messages are alternatives.
"""


def _compiled(messages: str) -> re.Pattern[str]:
    lines = (line.strip() for line in messages.splitlines())
    return re.compile("|".join(line for line in lines if line), re.IGNORECASE)


RULES: tuple[Rule, ...] = tuple(
    Rule(failure_class, weight, _compiled(messages), _compiled(needs) if needs else None)
    for failure_class, weight, needs, messages in _TABLE
)

XID_CLASS: dict[int, F] = {
    **dict.fromkeys((13, 31, 43, 68, 69), F.CUDA_USER_BUG),
    45: F.CASCADE,
    **dict.fromkeys((74, 121, *range(144, 151)), F.GPU_INTERCONNECT),
}
"""Xids that do not speak for a broken GPU: faults of the application, its clean-up, and links.

Source: NVIDIA's Xid catalogue. All others are taken for the GPU's.
"""
