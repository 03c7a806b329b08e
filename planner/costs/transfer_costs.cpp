#include "planner/costs/transfer_costs.hpp"

#include <algorithm>
#include <limits>

#include "planner/costs/gpu_facts.hpp"

namespace shardwright {

namespace {

// Share of the nominal bandwidth of host memory that all cores together reach. measured: STREAM on two-socket servers,
// some 0.8 of the theoretical rate of all channels (www.cs.virginia.edu/stream).
constexpr double kHostMemoryShare = 0.8;

// What one thread copies into the driver's pinned staging buffer, after which the copy over PCIe follows. measured:
// 5 to 6 GB/s pageable beside 11 to 12 pinned over PCIe 3.0 (github.com/rapidsai/dask-cuda pull request 98); DeepSpeed
// saw 6 times on one GPU and 4 to 5 on eight (github.com/deepspeedai/DeepSpeed pull request 5301).
constexpr double kStagingBandwidth = 10e9;
constexpr double kStagingPasses = 3; // over host memory: read, write to the buffer, read by the copy engine

// DeepSpeedCPUAdam's bytes read and written (28 a parameter) as a share of nominal host memory bandwidth. measured:
// 0.22, 0.51, 1.03, 2.41 and 2.57 s for 1, 2, 4, 8 and 10 billion parameters on a DGX-2 with 255.9 GB/s, the median
// (ZeRO-Offload, arXiv 2101.06840 table 4).
constexpr double kCpuAdamMemoryShare = 0.426;
// PyTorch's own Adam on the CPU takes 1.39, 2.75, 5.71, 11.93 and 14.76 s there, in several passes that read and write
// 80 bytes a parameter (AdamW of torch without fused kernels): the median share again. Altogether 5.5 times as long;
// DeepSpeed's documentation says five to seven times.
constexpr double kPlainAdamMemoryShare = 0.219;
// assumed: what one core streams through Adam, where few cores stand beside much memory bandwidth
constexpr double kCpuAdamPerCore = 10e9;

constexpr double kCopyLatency = 10e-6;  // assumed: setting up one asynchronous copy
constexpr double kNvmeLatency = 100e-6; // vendor: a read of flash, some 80 to 100 us on data-centre drives

double secondsAt(Bytes bytes, double bytesPerSecond, double latency)
{
    if (bytes <= Bytes(0))
        return 0;
    if (bytesPerSecond <= 0)
        return std::numeric_limits<double>::infinity();
    return latency + bytes.asDouble() / bytesPerSecond;
}

} // namespace

TransferCosts::TransferCosts(const Cluster& cluster, int hostThreads)
{
    const double ranks = std::max(1, cluster.gpusPerNode);
    const double hostMemory = cluster.hostMemoryBandwidth.value * kHostMemoryShare / ranks;
    m_pinned = std::min(cluster.pcieBandwidth.value, hostMemory);
    m_pageable = std::min(1 / (1 / cluster.pcieBandwidth.value + 1 / kStagingBandwidth), hostMemory / kStagingPasses);
    m_nvmeRead = cluster.nvmeReadBandwidth.value / ranks;
    m_nvmeWrite = cluster.nvmeWriteBandwidth.value / ranks;
    m_gpuMemory = sustainedBandwidth(cluster.gpu, gpuFacts(cluster.gpu));
    const double share = std::max(1, cluster.cpuCores) / ranks; // all ranks step at once
    const double cores = kCpuAdamPerCore * (hostThreads > 0 ? std::min<double>(hostThreads, share) : share);
    m_vectorizedOptimizer = std::min(cluster.hostMemoryBandwidth.value * kCpuAdamMemoryShare / ranks, cores);
    m_plainOptimizer = std::min(cluster.hostMemoryBandwidth.value * kPlainAdamMemoryShare / ranks, cores);
    m_gpuOptimizer = m_gpuMemory;
    if (!cluster.gpu.isHostProcessor())
        return;
    // The "GPU" is a rank's share of the host: one memory, figures measured by the kernels themselves.
    const auto rate = [&](MeasuredRate wanted) { return cluster.gpu.measuredRates.at(wanted).value; };
    m_pinned = m_pageable = cluster.pcieBandwidth.value;
    m_gpuMemory = rate(MeasuredRate::Copy);
    m_gpuOptimizer = m_vectorizedOptimizer = m_plainOptimizer = rate(MeasuredRate::Optimizer);
}

double TransferCosts::copy(Bytes bytes, bool pinned) const
{
    return secondsAt(bytes, pinned ? m_pinned : m_pageable, kCopyLatency);
}

double TransferCosts::copyToDevice(Bytes bytes, bool pinned) const
{
    return copy(bytes, pinned);
}

double TransferCosts::copyToHost(Bytes bytes, bool pinned) const
{
    return copy(bytes, pinned);
}

double TransferCosts::nvmeRead(Bytes bytes) const
{
    return secondsAt(bytes, m_nvmeRead, kNvmeLatency);
}

double TransferCosts::nvmeWrite(Bytes bytes) const
{
    return secondsAt(bytes, m_nvmeWrite, kNvmeLatency);
}

double TransferCosts::gpuMemory(Bytes readPlusWritten) const
{
    return secondsAt(readPlusWritten, m_gpuMemory, 0);
}

double TransferCosts::gpuOptimizer(Bytes readPlusWritten) const
{
    return secondsAt(readPlusWritten, m_gpuOptimizer, 0);
}

double TransferCosts::hostOptimizer(Bytes readPlusWritten, bool vectorized) const
{
    return secondsAt(readPlusWritten, vectorized ? m_vectorizedOptimizer : m_plainOptimizer, 0);
}

} // namespace shardwright
