// Sizes of what ZeRO-3 gathers and reduces, ZeRO++ and MiCS included.

#include <algorithm>

#include "planner/frameworks/deepspeed/zero3.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;

constexpr BufferSpec kGathered{"gathered parameters of a module",
                               "d x numel, padded to N",
                               "partition_parameters.py _all_gather_coalesced",
                               C::GatheredParameters,
                               Place::Gpu,
                               S::AllGather};
constexpr BufferSpec kFlatGather{"flat buffer of a coalesced gather",
                                 "d x numel of its parameters",
                                 "partition_parameters.py _all_gather_coalesced",
                                 C::CommunicationBuffers,
                                 Place::Gpu,
                                 S::AllGather};
constexpr BufferSpec kCopied{"parameters copied out of a coalesced gather",
                             "d x numel",
                             "partition_parameters.py AllGatherCoalescedHandle.wait: torch.cat",
                             C::GatheredParameters,
                             Place::Gpu,
                             S::AllGather};
constexpr BufferSpec kQuantizedGather{"gathered int8 weights and scales",
                                      "numel + 4 B a group",
                                      "partition_parameters.py CUDAQuantizer",
                                      C::CommunicationBuffers,
                                      Place::Gpu,
                                      S::AllGather};
constexpr BufferSpec kQuantizedShard{"this rank's int8 weights and scales",
                                     "(numel + 4 B a group)/N",
                                     "partition_parameters.py CUDAQuantizer.quantize",
                                     C::CommunicationBuffers,
                                     Place::Gpu,
                                     S::AllGather};
constexpr BufferSpec kJoinedShards{"shards of a coalesced gather, joined for the quantiser",
                                   "d x numel/N",
                                   "partition_parameters.py _all_gather_coalesced: torch.cat",
                                   C::CommunicationBuffers,
                                   Place::Gpu,
                                   S::AllGather};
constexpr BufferSpec kDequantized{
    "dequantised weights in fp16", "2 B x numel", "partition_parameters.py CUDAQuantizer.dequantize",
    C::GatheredParameters,         Place::Gpu,    S::AllGather};
constexpr BufferSpec kSecondary{"secondary shard of a module",
                                "d x numel/h, padded to N",
                                "partition_parameters.py _partition_param_sec",
                                C::Parameters,
                                Place::Gpu,
                                S::Compute};
constexpr BufferSpec kSecondaryPinned{"secondary shard of a module in host memory, pinned",
                                      "d x numel/h, padded to N, each tensor a power of two",
                                      "partition_parameters.py _partition_param_sec: remote_device",
                                      C::Parameters,
                                      Place::HostPinned,
                                      S::Host};
constexpr BufferSpec kSecondaryPageable{"secondary shard of a module in host memory",
                                        "d x numel/h, padded to N",
                                        "partition_parameters.py _partition_param_sec: remote_device",
                                        C::Parameters,
                                        Place::HostPageable,
                                        S::Host};
constexpr BufferSpec kUpload{
    "shard copied from the host", "d x shard", "partition_parameters.py _all_gather_coalesced: ds_tensor.to(device)",
    C::CommunicationBuffers,      Place::Gpu,  S::AllGather};
constexpr BufferSpec kGradient{"gradient of a module", "d x numel", "torch autograd", C::Gradients};
constexpr BufferSpec kLarge{"gradient larger than the bucket", "d x numel", "stage3.py __add_grad_to_ipg_bucket",
                            C::Gradients};
constexpr BufferSpec kScatterInput{"reduce-scatter input",
                                   "d x elements of the bucket",
                                   "runtime/comm/coalesced_collectives.py reduce_scatter_coalesced",
                                   C::CommunicationBuffers,
                                   Place::Gpu,
                                   S::Reduce};
constexpr BufferSpec kScatterCast{"bucket in the communication dtype",
                                  "w x elements of the bucket",
                                  "stage3.py __avg_scatter_grads",
                                  C::CommunicationBuffers,
                                  Place::Gpu,
                                  S::Reduce};
constexpr BufferSpec kOffloadedGradient{"gradient shard on its way to the host",
                                        "(d + 4 B) x largest shard",
                                        "stage3.py partition_grads",
                                        C::Temporaries,
                                        Place::Gpu,
                                        S::Reduce};

} // namespace

std::int64_t Zero3Rules::paddedElements(const TensorRuns& runs, std::int64_t ranks, bool frozen) const
{
    std::int64_t total = 0;
    for (const TensorRun& run : runs)
        if (run.frozen == frozen)
            total = checkedAdd(total, checkedMultiply(roundUp(run.numel, ranks), run.count));
    return total;
}

Bytes Zero3Rules::paddedBytes(const TensorRuns& runs, std::int64_t ranks) const
{
    return bytesOf(paddedElements(runs, ranks, false), m_dtypes.model) +
           bytesOf(paddedElements(runs, ranks, true), m_dtypes.frozen);
}

Bytes Zero3Rules::exactBytes(const TensorRuns& runs) const
{
    return paddedBytes(runs, 1);
}

Bytes Zero3Rules::quantizedBytes(const TensorRuns& runs, std::int64_t parts) const
{
    const auto ofPart = [](std::int64_t elements) {
        return bytesOf(elements, DType::Int8) + bytesOf(ceilDivide(elements, kQuantizedGroup), DType::Fp32);
    };
    if (executes()) // encodes a part as one run of elements
        return ofPart(paddedElements(runs, m_shardRanks, false) / parts) * parts;
    Bytes total;
    for (const TensorRun& run : runs)
        total += ofPart(roundUp(run.numel, m_shardRanks) / parts) * parts * run.count;
    return total;
}

Zero3Rules::GatherClasses Zero3Rules::gatherClasses(const TensorRuns& runs, std::int64_t parts, bool coalesced)
{
    const bool quantized = quantizesWeights();
    const Bytes whole = paddedBytes(runs, m_shardRanks);
    const Bytes sent = quantized ? quantizedBytes(runs, parts) : whole;
    const Bytes held = gathersNothing() ? Bytes(0) : sent;
    const Bytes part = share(whole, 1, parts);
    const BufferSpec& spec = quantized ? kQuantizedGather : coalesced ? kFlatGather : kGathered;
    GatherClasses classes;
    classes.flat = m_sizes.addBuffer(spec, held);
    classes.joined = m_sizes.addBuffer(kJoinedShards, quantized && coalesced && !gathersNothing() ? part : Bytes(0));
    classes.quantized = m_sizes.addBuffer(kQuantizedShard, quantized ? share(held, 1, parts) : Bytes(0));
    // A coalesced gather copies the host's shards straight into its flat buffer, unless they are to be quantised.
    const bool uploads = !paramOn(OffloadDevice::None) && (quantized || !coalesced);
    classes.upload = m_sizes.addBuffer(kUpload, uploads ? part : Bytes(0));
    classes.uploadCopy = m_sizes.addPayload(
        {"shard to the GPU", "d x shard", "partition_parameters.py _all_gather_coalesced", part, m_dtypes.model});
    // The quantiser works in fp16: bf16 is converted before and after it.
    const std::int64_t passes = (m_dtypes.model == DType::Bf16 ? 3 : 1) + (coalesced ? 2 : 0);
    classes.quantise =
        m_sizes.addPayload({"shard quantised", "d x shard + int8", "partition_parameters.py CUDAQuantizer",
                            quantized ? part * passes + share(sent, 1, parts) : Bytes(0), m_dtypes.model});
    classes.gather = m_sizes.addPayload({quantized ? "quantised parameters" : "parameters",
                                         quantized ? "numel + 4 B a group" : "d x numel, padded to N",
                                         "partition_parameters.py _all_gather_coalesced", sent, m_dtypes.model});
    return classes;
}

void Zero3Rules::defineCalls()
{
    m_calls.clear();
    for (const TensorRuns& runs : m_gathers.callKinds) {
        std::int64_t tensors = 0;
        for (const TensorRun& run : runs)
            tensors = checkedAdd(tensors, run.count);
        CallClasses call;
        call.coalesced = tensors > 1;
        const bool quantized = quantizesWeights();
        const Bytes whole = paddedBytes(runs, m_shardRanks);
        call.primary = gatherClasses(runs, m_shardRanks, call.coalesced);
        // The same padded tensors in fewer parts: larger ones come up, and int8 ones have scales of their own.
        const bool other = m_options.hpzPartitionSize > 1 && (quantized || !paramOn(OffloadDevice::None));
        call.secondary = other ? gatherClasses(runs, m_options.hpzPartitionSize, call.coalesced) : call.primary;
        const Bytes shard = share(whole, 1, m_shardRanks);
        call.widened = m_sizes.addBuffer(kFlatGather, quantized && call.coalesced ? whole : Bytes(0));
        const Bytes all = bytesOf(m_shard, m_dtypes.model) + bytesOf(m_frozenShard, m_dtypes.frozen);
        call.nvmeRead = m_sizes.addPayload(
            {"parameter shard from NVMe", "d x shard beyond max_in_cpu",
             "runtime/swap_tensor/partitioned_param_swapper.py",
             all > Bytes(0) ? share(shard, nvmeParameterBytes().count(), all.count()) : Bytes(0), m_dtypes.model});
        const std::int64_t passes = m_dtypes.model == DType::Bf16 ? 3 : 1; // converted from fp16
        const Bytes sent = quantized ? quantizedBytes(runs, m_shardRanks) : whole;
        call.copyOut = m_sizes.addPayload(
            {quantized ? "parameters dequantised" : "parameters copied out",
             quantized ? "int8 + d x numel" : "2 d x numel",
             quantized ? "partition_parameters.py CUDAQuantizer.dequantize"
                       : "partition_parameters.py AllGatherCoalescedHandle.wait: torch.cat",
             (quantized ? sent + whole * passes : Bytes(0)) + (call.coalesced ? whole * 2 : Bytes(0)), m_dtypes.model});
        m_calls.push_back(call);
    }
}

void Zero3Rules::definePieces()
{
    m_pieces.clear();
    m_narrowPieces.clear();
    for (const TensorRuns& runs : m_gathers.pieceKinds) {
        const Bytes bytes = gathersNothing() ? Bytes(0) : exactBytes(runs);
        m_pieces.push_back(m_sizes.addBuffer(kCopied, bytes));
        const bool converts = m_options.quantizedWeights && m_dtypes.model == DType::Bf16 && !executes();
        m_narrowPieces.push_back(m_sizes.addBuffer(kDequantized, converts ? bytes : Bytes(0)));
    }
    m_secondaries.clear();
    m_secondaryCopies.clear();
    for (const GatherUnitType& type : m_gathers.types) {
        const Bytes secondary = m_options.hpzPartitionSize > 1
                                    ? share(paddedBytes(type.tensors, m_shardRanks), 1, m_options.hpzPartitionSize)
                                    : Bytes(0);
        m_secondaries.push_back(defineSecondary(type, secondary));
        const bool here = paramOn(OffloadDevice::None);
        m_secondaryCopies.push_back(m_sizes.addPayload(
            {here ? "secondary shard copied" : "secondary shard to the host", here ? "2 d x numel/h" : "d x numel/h",
             "partition_parameters.py _partition_param_sec", here ? secondary * 2 : secondary, m_dtypes.model}));
    }
}

/// Secondary shards stand where the shards do, under offload_param in host memory, pinned tensor by tensor.
BufferClassId Zero3Rules::defineSecondary(const GatherUnitType& type, Bytes exact)
{
    if (paramOn(OffloadDevice::None))
        return m_sizes.addBuffer(kSecondary, exact, type.layerType);
    if (!roundsPinned(m_options.paramPinMemory))
        return m_sizes.addBuffer(m_options.paramPinMemory ? kSecondaryPinned : kSecondaryPageable, exact,
                                 type.layerType);
    Bytes rounded;
    for (const TensorRun& run : type.tensors)
        if (m_options.hpzPartitionSize > 1)
            rounded += hostBytes(bytesOf(roundUp(run.numel, m_shardRanks) / m_options.hpzPartitionSize,
                                         run.frozen ? m_dtypes.frozen : m_dtypes.model),
                                 true) *
                       run.count;
    return m_sizes.addBuffer(kSecondaryPinned, rounded, type.layerType);
}

void Zero3Rules::defineGradients()
{
    m_gradients.clear();
    for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
        const auto at = std::find(m_model.layers.begin(), m_model.layers.end(), static_cast<int>(type));
        const int layer = static_cast<int>(at - m_model.layers.begin());
        const int id = static_cast<int>(type);
        std::vector<GradientClasses>& classes = m_gradients.emplace_back(m_activations.modules(id).size());
        if (at == m_model.layers.end())
            continue;
        for (std::size_t module = 0; module < classes.size(); ++module) {
            const ModuleGradient made = moduleGradient(m_order, layer, static_cast<int>(module), bucketLimit());
            const Bytes bucketed = bytesOf(made.bucketedElements(), m_dtypes.model);
            if (!made.bucketed.empty())
                classes[module].bucketed = m_sizes.addBuffer(kGradient, bucketed, id);
            for (const FlatTensor& tensor : made.large)
                classes[module].large.push_back(
                    m_sizes.addBuffer(tensor.numel > m_options.reduceBucketSize ? kLarge : kGradient,
                                      bytesOf(tensor.numel, m_dtypes.model), id));
            const Bytes all = bytesOf(made.elements(), m_dtypes.model);
            classes[module].toBucket =
                m_sizes.addPayload({"gradient copied to the bucket", "2 d x numel",
                                    "stage3.py __add_grad_to_ipg_bucket", bucketed * 2, m_dtypes.model});
            classes[module].tiedSum = m_sizes.addPayload({"gradients of a tied weight added up", "3 d x numel",
                                                          "torch AccumulateGrad", all * 3, m_dtypes.model});
        }
    }
}

void Zero3Rules::defineFlushes()
{
    m_flushes.clear();
    for (const std::size_t representative : m_buckets.kinds) {
        const BucketFlush& flush = m_buckets.flushes[representative];
        std::int64_t padded = 0;
        std::int64_t shard = 0;
        for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i) {
            const FlatTensor& tensor = m_buckets.tensors[i];
            shard = checkedAdd(shard, shardOf(tensor));
            padded = checkedAdd(padded, roundUp(tensor.numel, m_shardRanks));
        }
        FlushClasses classes;
        const bool scatters = m_options.reduceScatter;
        // Only what is scattered is padded; under qgZ each tensor by itself.
        if (!scatters || m_options.quantizedGradients)
            padded = flush.elements;
        classes.asItIs =
            !m_options.quantizedGradients &&
            (!scatters || (flush.endTensor - flush.firstTensor == 1 && padded == flush.elements) || m_shardRanks == 1);
        const bool joins = !classes.asItIs && !m_options.quantizedGradients;
        classes.input = m_sizes.addBuffer(kScatterInput, joins ? bytesOf(padded, m_dtypes.wire) : Bytes(0));
        classes.cast = m_sizes.addBuffer(kScatterCast,
                                         m_dtypes.wire == m_dtypes.model ? Bytes(0) : bytesOf(padded, m_dtypes.wire));
        const std::int64_t moving = std::min(shard, m_largestShard);
        classes.offload = m_sizes.addBuffer(
            kOffloadedGradient,
            offloadsOptimizer() ? bytesOf(moving, m_dtypes.model) + bytesOf(moving, m_dtypes.master) : Bytes(0));
        classes.scatter =
            m_sizes.addPayload({"gradient bucket", "w x elements, padded to N", "stage3.py __avg_scatter_grads",
                                bytesOf(padded, m_dtypes.wire), m_dtypes.wire});
        classes.replicate =
            m_sizes.addPayload({"gradient shards", "w x shard", "zero/mics.py allreduce_mics_shard_grads",
                                bytesOf(shard, m_dtypes.wire), m_dtypes.wire});
        classes.narrowCopy = m_sizes.addPayload({"gradient shard", "a x shard", "stage3.py partition_grads",
                                                 bytesOf(shard, m_dtypes.accumulate), m_dtypes.accumulate});
        classes.wideCopy =
            m_sizes.addPayload({"fp32 gradient shard to the host", "4 B x shard", "stage3.py partition_grads",
                                bytesOf(shard, m_dtypes.master), m_dtypes.master});
        defineFlushCopies(classes, padded, shard);
        m_flushes.push_back(classes);
    }
    defineWideMoves();
}

/// Flushes of one kind may lie in sub-groups that are stepped in different places.
void Zero3Rules::defineWideMoves()
{
    m_wideMoves.clear();
    if (!stepsInTwoPlaces())
        return;
    for (const BucketFlush& flush : m_buckets.flushes) {
        std::int64_t here = 0;
        std::int64_t offloaded = 0;
        for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i) {
            const FlatTensor& tensor = m_buckets.tensors[i];
            std::int64_t& elements = steppedOnGpu(tensor) ? here : offloaded;
            elements = checkedAdd(elements, shardOf(tensor));
        }
        WideMoves moves;
        moves.down = m_sizes.addPayload({"fp32 gradient shard to the host", "4 B x shard", "stage3.py partition_grads",
                                         bytesOf(offloaded, m_dtypes.master), m_dtypes.master});
        moves.keep =
            m_sizes.addPayload({"fp32 gradient shard kept on the GPU", "(a + 4) B x shard", "stage3.py partition_grads",
                                bytesOf(here, m_dtypes.accumulate) + bytesOf(here, m_dtypes.master), m_dtypes.master});
        m_wideMoves.push_back(moves);
    }
}

void Zero3Rules::defineFlushCopies(FlushClasses& classes, std::int64_t padded, std::int64_t shard)
{
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_dtypes.model});
    };
    const Bytes wire = bytesOf(padded, m_dtypes.wire);
    Bytes preparing;
    if (!m_options.quantizedGradients)
        preparing += wire * (classes.asItIs ? 2 : 4); // divided by the ranks, and concatenated before
    if (m_dtypes.wire != m_dtypes.model)
        preparing += bytesOf(padded, m_dtypes.model) + wire;
    classes.prepare = add("bucket cast, concatenated and divided", "4 w x elements",
                          "runtime/comm/coalesced_collectives.py reduce_scatter_coalesced", preparing);
    const Bytes reduced = bytesOf(shard, m_dtypes.wire);
    const Bytes kept = bytesOf(shard, m_dtypes.accumulate);
    const bool onGpu = !offloadsOptimizer();
    classes.keep =
        add("gradient shard kept", "(w + a) x shard", "stage3.py partition_grads", onGpu ? reduced + kept : Bytes(0));
    classes.addUp =
        add("gradient shard added up", "(w + 2 a) x shard", "stage3.py partition_grads", reduced + kept * 2);
}

} // namespace shardwright
