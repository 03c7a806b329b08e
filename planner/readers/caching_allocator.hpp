#pragma once

// Reader: PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator.cpp) carrying out a schedule's allocations.
//
// What it models: sizes rounded to 512 B; blocks of at most 1 MiB cut from 2 MiB segments, up to 10 MiB from 20 MiB
// segments, larger ones from segments of their own rounded to 2 MiB; a pool for each stream; best fit, splitting and
// coalescing; a block of the large pool is split only when more than 1 MiB remains; when the device is full, cached
// segments without live blocks are given back and the allocation is tried again. With expandable segments each pool is
// one segment that grows by pages of 2 or 20 MiB at its end and gives back whole free pages.
// Not modelled: garbage_collection_threshold, CUDA graphs' private pools; addresses whose pages were given back are not
// used again, which costs no memory.

#include "core/plan.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// PYTORCH_CUDA_ALLOC_CONF.
struct AllocatorOptions {
    bool expandableSegments = false;
};

struct AllocatorReplay {
    Bytes peakReserved; // most that was held from the driver (torch max_memory_reserved)
    Bytes reservedAtEnd;
    bool outOfMemory = false; // even with everything cached given back, an allocation did not fit
    OpId failedOp = -1;
    std::int64_t flushes = 0; // times cached segments had to be given back
};

/// Replays initialisation and two steps (the second sees the fragmentation that the first left). `limit`: bytes that
/// the allocator may hold, the device's memory less what lies outside it.
AllocatorReplay replayAllocator(const Schedule& schedule, Bytes limit, const AllocatorOptions& options = {});

} // namespace shardwright
