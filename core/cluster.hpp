#pragma once

// The machines. Every figure carries where it comes from.

#include <map>
#include <string>
#include <vector>

#include "core/dtype.hpp"

namespace shardwright {

enum class Provenance : std::uint8_t { Vendor, Measured, Assumed };
template <> struct EnumNames<Provenance> {
    static constexpr std::array<std::pair<Provenance, std::string_view>, 3> table{
        {{Provenance::Vendor, "vendor"}, {Provenance::Measured, "measured"}, {Provenance::Assumed, "assumed"}}};
};

/// A figure with its source. The unit is that of the field it stands in.
struct Figure {
    double value = 0;
    Provenance tag = Provenance::Assumed;
    std::string source;
};

enum class LinkKind : std::uint8_t { None, NvLink, NvSwitch, Pcie, SharedMemory, InfiniBand, RoCE, Efa, Ethernet };
template <> struct EnumNames<LinkKind> {
    static constexpr std::array<std::pair<LinkKind, std::string_view>, 9> table{
        {{LinkKind::None, "none"},
         {LinkKind::NvLink, "nvlink"},
         {LinkKind::NvSwitch, "nvswitch"},
         {LinkKind::Pcie, "pcie"},
         {LinkKind::SharedMemory, "shared-memory"},
         {LinkKind::InfiniBand, "infiniband"},
         {LinkKind::RoCE, "roce"},
         {LinkKind::Efa, "efa"},
         {LinkKind::Ethernet, "ethernet"}}};
};

struct Link {
    LinkKind kind = LinkKind::None;
    Figure bandwidth; // bytes/s in one direction: per GPU for the intra-node link, per NODE (all NICs) for the
                      // inter-node link
    Figure latency;   // seconds
    int perNode = 0;  // inter-node link: NICs of a node; 0 = not said, one a GPU
};

/// compute_capability of a "GPU" that is the host's own processor: what `shardrun calibrate` describes, one a rank.
constexpr int kHostProcessor = 1;

/// Rates of kernels that were measured one by one on the machine itself.
enum class MeasuredRate : std::uint8_t { AttentionForward, AttentionBackward, Pointwise, Optimizer, Copy };
template <> struct EnumNames<MeasuredRate> {
    static constexpr std::array<std::pair<MeasuredRate, std::string_view>, 5> table{
        {{MeasuredRate::AttentionForward, "attention_forward"},   // FLOP/s
         {MeasuredRate::AttentionBackward, "attention_backward"}, // FLOP/s
         {MeasuredRate::Pointwise, "pointwise"},                  // bytes/s, read and written
         {MeasuredRate::Optimizer, "optimizer"},                  // bytes/s, read and written
         {MeasuredRate::Copy, "copy"}}};                          // bytes/s, read and written
};

struct Gpu {
    std::string name;
    Figure memory; // bytes that the driver gives to programs (torch's total_memory), not the marketing figure
    std::map<DType, Figure> peakFlops;            // FLOP/s, dense
    Figure memoryBandwidth;                       // bytes/s
    int multiprocessors = 0;                      // SMs; 0 = not said
    Figure power;                                 // watts at full load (TDP); 0 = not said
    int computeCapability = 0;                    // 70, 75, 80, 86, 89, 90, 100; kHostProcessor
    std::map<MeasuredRate, Figure> measuredRates; // of a host processor: all of them; else none
    bool isHostProcessor() const { return computeCapability == kHostProcessor; }
};

struct Cluster {
    std::string id;
    std::string name;
    std::string source; // file it was read from
    Gpu gpu;
    int gpusPerNode = 8;
    int nodes = 1;
    Link intraNode;             // among the GPUs of a node
    Link interNode;             // between nodes; kind None: a single node only
    Figure hostMemory;          // bytes per node
    Figure hostMemoryBandwidth; // bytes/s per node
    int cpuCores = 0;           // per node
    Figure pcieBandwidth;       // bytes/s per GPU, one direction, pinned memory
    Figure nvmeCapacity;        // bytes per node; 0 = none
    Figure nvmeReadBandwidth;   // bytes/s per node
    Figure nvmeWriteBandwidth;
    Figure storageBandwidth; // bytes/s of the whole cluster to where checkpoints go; 0 = not said
    Figure pricePerGpuHour;  // dollars; 0 = not said

    std::int64_t gpus() const { return checkedMultiply(gpusPerNode, nodes); }
};

} // namespace shardwright
