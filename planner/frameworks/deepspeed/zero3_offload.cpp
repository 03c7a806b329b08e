// What ZeRO-3 keeps in host memory and on NVMe (ZeRO-Infinity).

#include <algorithm>
#include <map>

#include "planner/frameworks/deepspeed/host_specs.hpp"
#include "planner/frameworks/deepspeed/zero3.hpp"

namespace shardwright {

namespace {

using C = Category;
using P = Place;

constexpr BufferSpec kMaster =
    hostSpec("master shards in host memory", "4 B x shard", "stage3.py _create_fp32_partitions: clone().float()",
             C::MasterParameters, P::HostPageable);
constexpr BufferSpec kMoments =
    hostSpec("optimizer states in host memory", "moments x 4 B x shard", "ops/adam/cpu_adam.py", C::OptimizerStates,
             P::HostPageable, Lifetime::FromFirstStep);
constexpr HostSpec kNarrow =
    hostPair({"gradient shards in host memory, pinned", "a x shard, a power of two"},
             {"gradient shards in host memory", "a x shard"}, "stage3.py grad_partitions_flat_buffer", C::Gradients);
constexpr HostSpec kWide =
    hostPair({"fp32 gradients in host memory, pinned", "4 B x sub-group, each a power of two"},
             {"fp32 gradients in host memory", "4 B x shard"}, "stage3.py initialize_optimizer_states", C::Gradients);
constexpr HostSpec kShards = hostPair({"parameter shards in host memory, pinned", "d x shard, a power of two"},
                                      {"parameter shards in host memory", "d x shard"},
                                      "stage3.py _create_param_groups_fp16_flat_cpu_memory", C::Parameters);
constexpr HostSpec kOwn = hostPair({"small parameter shards in host memory, pinned", "d x shard, each a power of two"},
                                   {"small parameter shards in host memory", "d x shard"},
                                   "partition_parameters.py _partition_param: not swappable_tensor", C::Parameters);

constexpr BufferSpec swapSpec(std::string_view name, std::string_view formula, std::string_view source)
{
    return hostSpec(name, formula, source, C::Temporaries, P::HostPinned);
}

// The executor's swap buffers stand by what they hold; together with what is left they are the same bytes.
constexpr std::string_view kSwapper = "swap_tensor/optimizer_utils.py OptimizerSwapper";
constexpr BufferSpec kSwapMaster =
    swapSpec("swap buffer of master shards, pinned", "4 B x largest sub-group", kSwapper);
constexpr BufferSpec kSwapGradient = swapSpec("swap buffer of gradients, pinned", "4 B x largest sub-group", kSwapper);
constexpr BufferSpec kSwapMoments =
    swapSpec("swap buffers of optimizer states, pinned", "moments x 4 B x largest sub-group", kSwapper);
constexpr BufferSpec kSwapBuffers = swapSpec("swap buffers of the optimizer, pinned",
                                             "buffer_count x 4 B x largest sub-group, each a power of two", kSwapper);
constexpr BufferSpec kParamBuffers =
    swapSpec("swap buffers of the parameters, pinned", "buffer_count x buffer_size x d, a power of two",
             "swap_tensor/partitioned_param_swapper.py");
constexpr BufferSpec kLanding =
    swapSpec("buffer of updated parameters on their way to NVMe, pinned", "d x largest sub-group, a power of two",
             "swap_tensor/partitioned_param_swapper.py reserve_partitioned_swap_space");

constexpr std::string_view kOptimizerFiles = "swap_tensor/partitioned_optimizer_swapper.py";
constexpr BufferSpec kNvmeMaster =
    hostSpec("master shards on NVMe", "4 B x shard", kOptimizerFiles, C::MasterParameters, P::Nvme);
constexpr BufferSpec kNvmeGradients =
    hostSpec("fp32 gradients on NVMe", "4 B x shard", kOptimizerFiles, C::Gradients, P::Nvme);
constexpr BufferSpec kNvmeMoments =
    hostSpec("optimizer states on NVMe", "moments x 4 B x shard", kOptimizerFiles, C::OptimizerStates, P::Nvme);
constexpr BufferSpec kNvmeParameters =
    hostSpec("parameter shards on NVMe", "d x shards of 1 MiB or more, of sub-groups beyond max_in_cpu",
             "swap_tensor/partitioned_param_swapper.py", C::Parameters, P::Nvme);

constexpr std::int64_t kSmallestSwap = 1 << 20; // swap_tensor/utils.py MIN_AIO_BYTES

} // namespace

/// swap_tensor/partitioned_param_swapper.py and optimizer_utils.py, min_aio_bytes: smaller ones stay in memory.
Bytes Zero3Rules::smallestSwap() const
{
    return Bytes(std::max(kSmallestSwap, m_options.aio.blockSize));
}

/// By name where tensors have names; else by size alone, without model_persistence_threshold.
bool Zero3Rules::isPersistent(const FlatTensor& tensor) const
{
    const std::vector<std::int32_t>& named = m_gathers.persistentTensors;
    if (recording() == Recording::ForExecution)
        return std::find(named.begin(), named.end(), tensor.tensor) != named.end();
    return tensor.numel <= m_options.paramPersistenceThreshold;
}

/// stage3.py _create_fp16_partitions_with_defragmentation: whole sub-groups in order, as long as they fit into a buffer
/// of max_in_cpu elements of the rank, are brought to host memory; of those behind them each shard stays where
/// partition_parameters.py _partition_param has put it, on NVMe if it is large enough to be swapped.
void Zero3Rules::findHomes()
{
    const std::vector<FlatTensor>& tensors = m_order.tensors();
    m_homes.assign(tensors.size(), Home::Gpu);
    m_nvmeShard = 0;
    if (paramOn(OffloadDevice::None))
        return;
    const bool nvme = paramOn(OffloadDevice::Nvme);
    const bool rounded = roundsPinned(m_options.paramPinMemory);
    std::int64_t before = 0;
    for (SubGroup& group : m_subGroups) {
        before = checkedAdd(before, group.elements);
        const bool fits = !nvme || before <= m_options.maxInCpu;
        group.parametersOnNvme = 0;
        for (std::size_t i = group.firstTensor; i < group.endTensor; ++i) {
            const std::int64_t shard = shardOf(tensors[i]);
            const Bytes bytes = bytesOf(shard, m_dtypes.model);
            if (nvme && fits) {
                m_homes[i] = Home::Flat;
            } else if (isPersistent(tensors[i])) {
                m_homes[i] = Home::Gpu;
            } else if (!nvme) {
                m_homes[i] = Home::Flat;
            } else if (bytes < smallestSwap()) {
                m_homes[i] = Home::Host;
                m_ownHostBytes += hostBytes(bytes, rounded);
            } else {
                m_homes[i] = Home::Nvme;
                group.parametersOnNvme = checkedAdd(group.parametersOnNvme, shard);
            }
        }
        m_nvmeShard = checkedAdd(m_nvmeShard, group.parametersOnNvme);
    }
}

Bytes Zero3Rules::nvmeParameterBytes() const
{
    return bytesOf(m_nvmeShard, m_dtypes.model) + bytesOf(m_frozenOnNvme, m_dtypes.frozen);
}

void Zero3Rules::defineHost()
{
    const bool pinned = m_options.pinMemory;
    const bool rounded = roundsPinned(pinned);
    m_hostMaster = m_sizes.addBuffer(kMaster, bytesOf(onHostElements(), m_dtypes.master));
    m_hostMoments = m_sizes.addBuffer(kMoments, stateBytes(onHostElements()));
    // The 16-bit gradient shards of all parameters live where the optimizer does, in the host for NVMe too.
    const Bytes narrow = offloadsOptimizer() ? bytesOf(m_shard, m_dtypes.accumulate) : Bytes(0);
    m_hostNarrowGradients = m_sizes.addBuffer(kNarrow.of(pinned), hostBytes(narrow, rounded));
    Bytes wide;
    for (const SubGroup& group : m_subGroups)
        if (!group.onGpu && !group.onNvme)
            wide += hostBytes(bytesOf(group.elements, m_dtypes.master), rounded);
    m_hostWideGradients = m_sizes.addBuffer(kWide.of(pinned), wide);

    const bool paramPinned = m_options.paramPinMemory;
    const bool paramRounded = roundsPinned(paramPinned);
    Bytes shards;
    if (paramOn(OffloadDevice::Cpu))
        shards = hostBytes(bytesOf(m_shard - std::min(m_shard, m_persistentShard), m_dtypes.model), paramRounded) +
                 hostBytes(bytesOf(m_frozenShard, m_dtypes.frozen), paramRounded);
    else if (paramOn(OffloadDevice::Nvme))
        shards = hostBytes(bytesOf(std::min(m_options.maxInCpu, m_shard), m_dtypes.model), paramRounded);
    m_hostShards = m_sizes.addBuffer(kShards.of(paramPinned), shards);
    m_hostOwn = m_sizes.addBuffer(kOwn.of(paramPinned), m_ownHostBytes);
    // One is made as soon as a sub-group is not in the flat buffer, of the size of the largest of all.
    const bool lands = paramOn(OffloadDevice::Nvme) && m_options.maxInCpu < m_shard;
    m_landing = m_sizes.addBuffer(
        kLanding, lands ? hostBytes(bytesOf(largestSubGroup(), m_dtypes.model), roundsPinned(true)) : Bytes(0));
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source,
                            std::int64_t elements) {
        return m_sizes.addPayload({name, formula, source, bytesOf(elements, m_dtypes.model), m_dtypes.model});
    };
    for (SubGroup& group : m_subGroups) {
        std::int64_t kept = 0;
        for (std::size_t i = group.firstTensor; i < group.endTensor && group.onGpu; ++i)
            if (m_homes[i] == Home::Flat || m_homes[i] == Home::Host)
                kept = checkedAdd(kept, shardOf(m_order.tensors()[i]));
        group.parametersDown = add("updated shards to the host", "d x shard",
                                   "stage3.py _reassign_or_swap_out_partitioned_parameters", kept);
        group.parametersLand = add("updated shards to the host, on their way to NVMe", "d x shard",
                                   "swap_tensor/partitioned_param_swapper.py swap_out_partitioned_params",
                                   group.onGpu ? group.parametersOnNvme : 0);
        group.parametersWrite =
            add("updated parameter shards to NVMe", "d x shards on NVMe",
                "swap_tensor/partitioned_param_swapper.py swap_out_partitioned_params", group.parametersOnNvme);
    }
}

/// Which of a call's shards are on NVMe differs from layer to layer.
void Zero3Rules::defineNvmeReads()
{
    m_firstReads.clear();
    m_laterReads.clear();
    if (recording() != Recording::ForExecution || !paramOn(OffloadDevice::Nvme))
        return;
    std::map<std::int32_t, std::int64_t> onNvme; // elements, by tensor
    for (std::size_t i = 0; i < m_homes.size(); ++i)
        if (m_homes[i] == Home::Nvme)
            onNvme[m_order.tensors()[i].tensor] = shardOf(m_order.tensors()[i]);
    for (auto [trace, reads] : {std::pair{&m_gathers.first, &m_firstReads}, std::pair{&m_gathers.later, &m_laterReads}})
        for (const GatherCall& call : trace->calls) {
            std::int64_t elements = 0;
            for (std::int32_t piece = call.firstPiece; piece < call.endPiece; ++piece)
                for (const std::int32_t tensor : trace->pieces[static_cast<std::size_t>(piece)].tensors)
                    if (const auto found = onNvme.find(tensor); found != onNvme.end())
                        elements = checkedAdd(elements, found->second);
            reads->push_back(m_sizes.addPayload({"parameter shard from NVMe", "d x shards on NVMe",
                                                 "runtime/swap_tensor/partitioned_param_swapper.py",
                                                 bytesOf(elements, m_dtypes.model), m_dtypes.model}));
        }
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
}

} // namespace shardwright
