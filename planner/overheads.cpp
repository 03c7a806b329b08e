#include "planner/overheads.hpp"

#include <fmt/format.h>

#include "planner/costs/overlap_costs.hpp"

namespace shardwright {

namespace {

// CUDA context with lazily loaded modules and the kernels that a training step loads. PyTorch issue 107667 (maintainer)
// gives 300 MB for the context itself; 0.5 to 0.6 GB is what nvidia-smi shows beside reserved memory in training.
constexpr Bytes kContext = 550_MB;
// cuBLAS workspace per handle and stream: aten/src/ATen/cuda/CublasHandlePool.cpp.
constexpr Bytes kCublasHopper = 32_MiB;
constexpr Bytes kCublasElsewhere(8519680); // 8.125 MiB
// Buffers of one NCCL channel's ring connection, both directions: 10 MiB of LL, LL128 and Simple buffers in 2 MiB
// granules and 2 MiB of send structures (NCCL issue 1685; src/init.cc, src/transport/p2p.cc).
constexpr Bytes kNcclChannel = 12_MiB;
// NVLink SHARP buffers on Hopper: 2 x 16 channels x 1 MiB x 8 local ranks (NCCL src/transport/nvls.cc).
constexpr Bytes kNvlsHopper = 256_MiB;
// Loaded libraries (cuDNN, cuBLASLt, profilers) and the driver's own rounding.
constexpr Bytes kMiscellaneous = 200_MB;

constexpr int kHopper = 90;

} // namespace

std::vector<Overhead> gpuOverheads(const Cluster& cluster, int communicators)
{
    if (cluster.gpu.isHostProcessor())
        return {};
    std::vector<Overhead> overheads{
        {"CUDA context", kContext, Provenance::Assumed, "PyTorch issue 107667; 0.5-0.6 GB seen beside reserved memory"},
        {"cuBLAS workspace", cluster.gpu.computeCapability >= kHopper ? kCublasHopper : kCublasElsewhere,
         Provenance::Vendor, "PyTorch CublasHandlePool.cpp"},
        {"libraries and driver", kMiscellaneous, Provenance::Assumed, "rule of thumb"}};
    if (cluster.gpus() <= 1)
        return overheads;
    const LinkKind link = cluster.intraNode.kind;
    Bytes each = kNcclChannel * ncclChannels(link);
    if (link == LinkKind::NvSwitch && cluster.gpu.computeCapability >= kHopper)
        each += kNvlsHopper;
    overheads.push_back({fmt::format("{} NCCL communicator{}", communicators, communicators == 1 ? "" : "s"),
                         each * communicators, Provenance::Assumed,
                         "NCCL issue 1685: 10 + 2 MiB a channel and connection"});
    return overheads;
}

} // namespace shardwright
