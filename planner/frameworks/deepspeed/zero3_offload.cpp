// What ZeRO-3 keeps in host memory and on NVMe (ZeRO-Infinity).

#include <algorithm>

#include "planner/frameworks/deepspeed/zero3.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr BufferSpec host(std::string_view name, std::string_view formula, std::string_view source, C category,
                          Place place, L lifetime = L::Persistent)
{
    return {name, formula, source, category, place, S::Host, lifetime};
}

constexpr BufferSpec kMaster =
    host("master shards in host memory", "4 B x shard", "stage3.py _create_fp32_partitions: clone().float()",
         C::MasterParameters, Place::HostPageable);
constexpr BufferSpec kMoments = host("optimizer states in host memory", "moments x 4 B x shard", "ops/adam/cpu_adam.py",
                                     C::OptimizerStates, Place::HostPageable, L::FromFirstStep);
constexpr BufferSpec kNarrowPinned = host("gradient shards in host memory, pinned", "a x shard, a power of two",
                                          "stage3.py grad_partitions_flat_buffer", C::Gradients, Place::HostPinned);
constexpr BufferSpec kNarrowPageable = host("gradient shards in host memory", "a x shard",
                                            "stage3.py grad_partitions_flat_buffer", C::Gradients, Place::HostPageable);
constexpr BufferSpec kWidePinned = host("fp32 gradients in host memory, pinned", "4 B x sub-group, each a power of two",
                                        "stage3.py initialize_optimizer_states", C::Gradients, Place::HostPinned);
constexpr BufferSpec kWidePageable = host("fp32 gradients in host memory", "4 B x shard",
                                          "stage3.py initialize_optimizer_states", C::Gradients, Place::HostPageable);
constexpr BufferSpec kShardsPinned =
    host("parameter shards in host memory, pinned", "d x shard, a power of two",
         "stage3.py _create_param_groups_fp16_flat_cpu_memory", C::Parameters, Place::HostPinned);
constexpr BufferSpec kShardsPageable =
    host("parameter shards in host memory", "d x shard", "stage3.py _create_param_groups_fp16_flat_cpu_memory",
         C::Parameters, Place::HostPageable);
// The executor's swap buffers stand by what they hold; together with what is left they are the same bytes.
constexpr BufferSpec kSwapMaster =
    host("swap buffer of master shards, pinned", "4 B x largest sub-group",
         "swap_tensor/optimizer_utils.py OptimizerSwapper", C::Temporaries, Place::HostPinned);
constexpr BufferSpec kSwapGradient =
    host("swap buffer of gradients, pinned", "4 B x largest sub-group",
         "swap_tensor/optimizer_utils.py OptimizerSwapper", C::Temporaries, Place::HostPinned);
constexpr BufferSpec kSwapMoments =
    host("swap buffers of optimizer states, pinned", "moments x 4 B x largest sub-group",
         "swap_tensor/optimizer_utils.py OptimizerSwapper", C::Temporaries, Place::HostPinned);
constexpr BufferSpec kSwapBuffers =
    host("swap buffers of the optimizer, pinned", "buffer_count x 4 B x largest sub-group, each a power of two",
         "swap_tensor/optimizer_utils.py OptimizerSwapper", C::Temporaries, Place::HostPinned);
constexpr BufferSpec kParamBuffers =
    host("swap buffers of the parameters, pinned", "buffer_count x buffer_size x d, a power of two",
         "swap_tensor/partitioned_param_swapper.py", C::Temporaries, Place::HostPinned);
constexpr BufferSpec kNvmeMaster =
    host("master shards on NVMe", "4 B x shard", "swap_tensor/partitioned_optimizer_swapper.py", C::MasterParameters,
         Place::Nvme);
constexpr BufferSpec kNvmeGradients = host("fp32 gradients on NVMe", "4 B x shard",
                                           "swap_tensor/partitioned_optimizer_swapper.py", C::Gradients, Place::Nvme);
constexpr BufferSpec kNvmeMoments =
    host("optimizer states on NVMe", "moments x 4 B x shard", "swap_tensor/partitioned_optimizer_swapper.py",
         C::OptimizerStates, Place::Nvme);
constexpr BufferSpec kNvmeParameters = host("parameter shards on NVMe", "d x shard beyond max_in_cpu",
                                            "swap_tensor/partitioned_param_swapper.py", C::Parameters, Place::Nvme);

} // namespace

/// Shards beyond max_in_cpu elements of the rank.
Bytes Zero3Rules::nvmeParameterBytes() const
{
    if (!paramOn(OffloadDevice::Nvme))
        return Bytes(0);
    const std::int64_t inCpu = std::min(m_options.maxInCpu, m_shard);
    return bytesOf(m_shard - inCpu, m_dtypes.model) + bytesOf(m_frozenShard, m_dtypes.frozen);
}

void Zero3Rules::defineHost()
{
    const bool pinned = m_options.pinMemory;
    const bool rounded = roundsPinned(pinned);
    m_hostMaster = m_sizes.addBuffer(kMaster, bytesOf(onHostElements(), m_dtypes.master));
    m_hostMoments = m_sizes.addBuffer(kMoments, stateBytes(onHostElements()));
    // The 16-bit gradient shards of all parameters live where the optimizer does, in the host for NVMe too.
    const Bytes narrow = offloadsOptimizer() ? bytesOf(m_shard, m_dtypes.accumulate) : Bytes(0);
    m_hostNarrowGradients = m_sizes.addBuffer(pinned ? kNarrowPinned : kNarrowPageable, hostBytes(narrow, rounded));
    Bytes wide;
    for (const SubGroup& group : m_subGroups)
        if (!group.onGpu && !group.onNvme)
            wide += hostBytes(bytesOf(group.elements, m_dtypes.master), rounded);
    m_hostWideGradients = m_sizes.addBuffer(pinned ? kWidePinned : kWidePageable, wide);

    const bool paramPinned = m_options.paramPinMemory;
    const bool paramRounded = roundsPinned(paramPinned);
    Bytes shards;
    if (paramOn(OffloadDevice::Cpu))
        shards = hostBytes(bytesOf(m_shard - std::min(m_shard, m_persistentShard), m_dtypes.model), paramRounded) +
                 hostBytes(bytesOf(m_frozenShard, m_dtypes.frozen), paramRounded);
    else if (paramOn(OffloadDevice::Nvme))
        shards = hostBytes(bytesOf(std::min(m_options.maxInCpu, m_shard), m_dtypes.model), paramRounded);
    m_hostShards = m_sizes.addBuffer(paramPinned ? kShardsPinned : kShardsPageable, shards);
}

void Zero3Rules::defineNvme()
{
    std::int64_t stored = 0;
    const std::int64_t largest = largestSwap();
    for (const SubGroup& group : m_subGroups)
        if (group.onNvme)
            stored = checkedAdd(stored, group.elements);
    const Bytes buffer = hostBytes(bytesOf(largest, m_dtypes.master), roundsPinned(true));
    const Bytes swapped = buffer * m_options.optimizerBufferCount;
    const Bytes ofSet = buffer * 2 + stateBytes(largest); // master, gradient and moments of one sub-group
    m_swapMaster = m_sizes.addBuffer(kSwapMaster, executes() ? buffer : Bytes(0));
    m_swapGradient = m_sizes.addBuffer(kSwapGradient, executes() ? buffer : Bytes(0));
    m_swapMoments = m_sizes.addBuffer(kSwapMoments, executes() ? stateBytes(largest) : Bytes(0));
    m_swapBuffers = m_sizes.addBuffer(
        kSwapBuffers, executes() ? std::max(swapped, ofSet * swapSets()) - ofSet * swapSets() : swapped);
    const std::int64_t paramBuffer = checkedMultiply(m_options.paramBufferSize, m_options.paramBufferCount);
    m_paramBuffers = m_sizes.addBuffer(
        kParamBuffers,
        paramOn(OffloadDevice::Nvme) ? hostBytes(bytesOf(paramBuffer, m_dtypes.model), roundsPinned(true)) : Bytes(0));
    m_nvmeMaster = m_sizes.addBuffer(kNvmeMaster, bytesOf(stored, m_dtypes.master));
    m_nvmeGradients = m_sizes.addBuffer(kNvmeGradients, bytesOf(stored, m_dtypes.master));
    m_nvmeMoments = m_sizes.addBuffer(kNvmeMoments, stateBytes(stored));
    m_nvmeParameters = m_sizes.addBuffer(kNvmeParameters, nvmeParameterBytes());
    m_nvmeParameterWrite =
        m_sizes.addPayload({"updated parameter shards to NVMe", "d x shard beyond max_in_cpu",
                            "swap_tensor/partitioned_param_swapper.py", nvmeParameterBytes(), m_dtypes.model});
}

} // namespace shardwright
