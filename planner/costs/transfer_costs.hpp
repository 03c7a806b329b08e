#pragma once

// Seconds of everything that moves bytes without computing: within the GPU's memory, over PCIe, to and from NVMe, and
// the optimizer steps, which are bound by memory too. All ranks of a node do the same at the same time and share what
// they share.

#include "core/cluster.hpp"
#include "core/units.hpp"

namespace shardwright {

class TransferCosts {
public:
    /// `hostThreads`: those of a rank's optimizer on the host; 0: its share of the node's cores.
    explicit TransferCosts(const Cluster& cluster, int hostThreads = 0);

    double copyToDevice(Bytes bytes, bool pinned) const; // one GPU's copy, all GPUs of the node copying
    double copyToHost(Bytes bytes, bool pinned) const;
    double nvmeRead(Bytes bytes) const; // of one rank; the node's ranks share its drives. Infinite where it has none
    double nvmeWrite(Bytes bytes) const;
    double gpuMemory(Bytes readPlusWritten) const; // a kernel bound by the GPU's memory
    double gpuOptimizer(Bytes readPlusWritten) const;
    /// One rank's share of the node's cores and memory. Vectorized: one pass, as DeepSpeedCPUAdam; otherwise bytes of
    /// all passes of an optimizer made of single operations.
    double hostOptimizer(Bytes readPlusWritten, bool vectorized) const;

private:
    double copy(Bytes bytes, bool pinned) const;

    // bytes/s of one rank
    double m_pinned = 0;
    double m_pageable = 0;
    double m_nvmeRead = 0;
    double m_nvmeWrite = 0;
    double m_gpuMemory = 0;
    double m_gpuOptimizer = 0;
    double m_vectorizedOptimizer = 0;
    double m_plainOptimizer = 0;
};

} // namespace shardwright
