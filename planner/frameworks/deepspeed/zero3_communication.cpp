// Sizes of what ZeRO-3 gathers and reduces, ZeRO++ and MiCS included.

#include <algorithm>

#include "planner/frameworks/deepspeed/zero3.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;

constexpr std::int64_t kGradientsPerByte = 2; // int4

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
constexpr BufferSpec kDequantized{
    "dequantised weights in fp16", "2 B x numel", "partition_parameters.py CUDAQuantizer.dequantize",
    C::GatheredParameters,         Place::Gpu,    S::AllGather};
constexpr BufferSpec kSecondary{"secondary shard of a module",
                                "d x numel/h, padded to N",
                                "partition_parameters.py _partition_param_sec",
                                C::Parameters,
                                Place::Gpu,
                                S::Compute};
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
constexpr BufferSpec kCompressed{"int4 gradients and scales",
                                 "elements / 2 + 4 B a group",
                                 "runtime/comm/coalesced_collectives.py all_to_all_quant_reduce",
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

Bytes Zero3Rules::quantizedBytes(const TensorRuns& runs) const
{
    if (executes()) { // encodes a part as one run of elements
        const std::int64_t part = paddedElements(runs, m_shardRanks, false) / m_shardRanks;
        return (bytesOf(part, DType::Int8) + bytesOf(ceilDivide(part, kQuantizedGroup), DType::Fp32)) * m_shardRanks;
    }
    Bytes total;
    for (const TensorRun& run : runs) {
        const std::int64_t shard = ceilDivide(run.numel, m_shardRanks);
        const Bytes ofRank = bytesOf(shard, DType::Int8) + bytesOf(ceilDivide(shard, kQuantizedGroup), DType::Fp32);
        total += ofRank * m_shardRanks * run.count;
    }
    return total;
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
        const Bytes sent = quantized ? quantizedBytes(runs) : whole;
        const Bytes held = gathersNothing() ? Bytes(0) : sent;
        const BufferSpec& spec = quantized ? kQuantizedGather : call.coalesced ? kFlatGather : kGathered;
        call.flat = m_sizes.addBuffer(spec, held);
        const Bytes shard = share(whole, 1, m_shardRanks);
        call.quantized = m_sizes.addBuffer(kQuantizedShard, quantized ? share(held, 1, m_shardRanks) : Bytes(0));
        call.widened = m_sizes.addBuffer(kFlatGather, quantized && call.coalesced ? whole : Bytes(0));
        // A coalesced gather copies the host's shards straight into its flat buffer.
        call.upload = m_sizes.addBuffer(kUpload, paramOn(OffloadDevice::None) || call.coalesced ? Bytes(0) : shard);
        call.gather = m_sizes.addPayload({quantized ? "quantised parameters" : "parameters",
                                          quantized ? "numel + 4 B a group" : "d x numel, padded to N",
                                          "partition_parameters.py _all_gather_coalesced", sent, m_dtypes.model});
        call.uploadCopy = m_sizes.addPayload(
            {"shard to the GPU", "d x shard", "partition_parameters.py _all_gather_coalesced", shard, m_dtypes.model});
        const Bytes all = bytesOf(m_shard, m_dtypes.model) + bytesOf(m_frozenShard, m_dtypes.frozen);
        call.nvmeRead = m_sizes.addPayload(
            {"parameter shard from NVMe", "d x shard beyond max_in_cpu",
             "runtime/swap_tensor/partitioned_param_swapper.py",
             all > Bytes(0) ? share(shard, nvmeParameterBytes().count(), all.count()) : Bytes(0), m_dtypes.model});
        // The quantiser works in fp16: bf16 is converted before and after it.
        const std::int64_t passes = m_dtypes.model == DType::Bf16 ? 3 : 1;
        call.quantise =
            m_sizes.addPayload({"shard quantised", "d x shard + int8", "partition_parameters.py CUDAQuantizer",
                                quantized ? shard * passes + share(sent, 1, m_shardRanks) : Bytes(0), m_dtypes.model});
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
        m_secondaries.push_back(m_sizes.addBuffer(kSecondary, secondary, type.layerType));
        m_secondaryCopies.push_back(
            m_sizes.addPayload({"secondary shard copied", "2 d x numel/h",
                                "partition_parameters.py _partition_param_sec", secondary * 2, m_dtypes.model}));
    }
}

void Zero3Rules::defineGradients()
{
    m_gradients.clear();
    const std::int64_t limit = m_options.contiguousGradients ? m_options.reduceBucketSize : 0;
    for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
        const auto at = std::find(m_model.layers.begin(), m_model.layers.end(), static_cast<int>(type));
        const int layer = static_cast<int>(at - m_model.layers.begin());
        const int id = static_cast<int>(type);
        std::vector<GradientClasses>& classes = m_gradients.emplace_back(m_activations.modules(id).size());
        if (at == m_model.layers.end())
            continue;
        for (std::size_t module = 0; module < classes.size(); ++module) {
            const ModuleGradient sizes = moduleGradient(m_order, layer, static_cast<int>(module), limit);
            if (sizes.bucketed > 0)
                classes[module].bucketed = m_sizes.addBuffer(kGradient, bytesOf(sizes.bucketed, m_dtypes.model), id);
            if (sizes.large > 0)
                classes[module].large = m_sizes.addBuffer(kLarge, bytesOf(sizes.large, m_dtypes.model), id);
            const Bytes all = bytesOf(checkedAdd(sizes.bucketed, sizes.large), m_dtypes.model);
            const bool copies = m_options.contiguousGradients;
            classes[module].toBucket = m_sizes.addPayload(
                {"gradient copied to the bucket", "2 d x numel", "stage3.py __add_grad_to_ipg_bucket",
                 copies ? bytesOf(sizes.bucketed, m_dtypes.model) * 2 : Bytes(0), m_dtypes.model});
            classes[module].tiedSum = m_sizes.addPayload({"gradients of a tied weight added up", "3 d x numel",
                                                          "torch AccumulateGrad", all * 3, m_dtypes.model});
        }
    }
}

void Zero3Rules::defineFlushes()
{
    m_flushes.clear();
    const std::int64_t local = m_cluster->gpusPerNode;
    for (const std::size_t representative : m_buckets.kinds) {
        const BucketFlush& flush = m_buckets.flushes[representative];
        std::int64_t padded = 0;     // of what is reduce-scattered
        std::int64_t compressed = 0; // of what goes through qgZ
        std::int64_t shard = 0;
        Bytes insideScales;
        Bytes betweenScales;
        for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i) {
            const FlatTensor& tensor = m_buckets.tensors[i];
            shard = checkedAdd(shard, shardOf(tensor));
            // all_to_all_quant_reduce leaves vectors and tensors that do not divide evenly to reduce-scatter
            const bool even = tensor.numel % checkedMultiply(2, m_ranks) == 0;
            if (m_options.quantizedGradients && tensor.longestSide > 0 && even) {
                compressed = checkedAdd(compressed, tensor.numel);
                const std::int64_t groups = std::max(tensor.longestSide, m_ranks);
                insideScales += bytesOf(groups, DType::Fp32);
                betweenScales += bytesOf(ceilDivide(groups, local), DType::Fp32);
            } else {
                padded = checkedAdd(padded, roundUp(tensor.numel, m_shardRanks));
            }
        }
        FlushClasses classes;
        classes.compressesAll = padded == 0;
        const bool scatters = m_options.reduceScatter;
        if (!scatters && compressed == 0)
            padded = flush.elements; // only what is scattered is padded
        const bool asItIs =
            !scatters || (flush.endTensor - flush.firstTensor == 1 && padded == flush.elements) || m_shardRanks == 1;
        classes.asItIs = asItIs;
        classes.input = m_sizes.addBuffer(kScatterInput, asItIs ? Bytes(0) : bytesOf(padded, m_dtypes.wire));
        classes.cast = m_sizes.addBuffer(kScatterCast,
                                         m_dtypes.wire == m_dtypes.model ? Bytes(0) : bytesOf(padded, m_dtypes.wire));
        const Bytes inside = Bytes(ceilDivide(compressed, kGradientsPerByte)) + insideScales;
        const Bytes between = Bytes(ceilDivide(compressed, checkedMultiply(kGradientsPerByte, local))) + betweenScales;
        classes.compressed = m_sizes.addBuffer(kCompressed, m_options.quantizedGradients ? inside : Bytes(0));
        const std::int64_t moving = std::min(shard, m_largestShard);
        classes.offload = m_sizes.addBuffer(
            kOffloadedGradient,
            offloadsOptimizer() ? bytesOf(moving, m_dtypes.model) + bytesOf(moving, m_dtypes.master) : Bytes(0));
        classes.scatter =
            m_sizes.addPayload({"gradient bucket", "w x elements, padded to N", "stage3.py __avg_scatter_grads",
                                bytesOf(padded, m_dtypes.wire), m_dtypes.wire});
        classes.inside =
            m_sizes.addPayload({"int4 gradients inside the node", "elements / 2 + scales",
                                "coalesced_collectives.py all_to_all_quant_reduce", inside, m_dtypes.model});
        classes.between =
            m_sizes.addPayload({"int4 gradients between nodes", "elements / (2 x GPUs a node) + scales",
                                "coalesced_collectives.py all_to_all_quant_reduce", between, m_dtypes.model});
        classes.replicate =
            m_sizes.addPayload({"gradient shards", "w x shard", "zero/mics.py allreduce_mics_shard_grads",
                                bytesOf(shard, m_dtypes.wire), m_dtypes.wire});
        classes.narrowCopy = m_sizes.addPayload({"gradient shard", "a x shard", "stage3.py partition_grads",
                                                 bytesOf(shard, m_dtypes.accumulate), m_dtypes.accumulate});
        classes.wideCopy =
            m_sizes.addPayload({"fp32 gradient shard to the host", "4 B x shard", "stage3.py partition_grads",
                                bytesOf(shard, m_dtypes.master), m_dtypes.master});
        defineFlushCopies(classes, padded, compressed, shard, asItIs, inside, between);
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

void Zero3Rules::defineFlushCopies(FlushClasses& classes, std::int64_t padded, std::int64_t compressed,
                                   std::int64_t shard, bool asItIs, Bytes inside, Bytes between)
{
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_dtypes.model});
    };
    const Bytes wire = bytesOf(padded, m_dtypes.wire);
    Bytes preparing = wire * 2; // divided by the ranks
    if (m_dtypes.wire != m_dtypes.model)
        preparing += bytesOf(padded, m_dtypes.model) + wire;
    if (!asItIs)
        preparing += wire * 2;
    classes.prepare = add("bucket cast, concatenated and divided", "4 w x elements",
                          "runtime/comm/coalesced_collectives.py reduce_scatter_coalesced", preparing);
    const Bytes reduced = bytesOf(shard, m_dtypes.wire);
    const Bytes kept = bytesOf(shard, m_dtypes.accumulate);
    const bool onGpu = !offloadsOptimizer();
    classes.keep =
        add("gradient shard kept", "(w + a) x shard", "stage3.py partition_grads", onGpu ? reduced + kept : Bytes(0));
    classes.addUp =
        add("gradient shard added up", "(w + 2 a) x shard", "stage3.py partition_grads", reduced + kept * 2);
    // Two hops: everything is quantised, then what the node has reduced, a part in gpusPerNode of it, again.
    const Bytes gradients = bytesOf(compressed, m_dtypes.model);
    const Bytes ofNode = share(gradients, 1, m_cluster->gpusPerNode);
    const std::string_view source = "coalesced_collectives.py all_to_all_quant_reduce";
    classes.quantise = add("gradients quantised to int4", "d x elements + payload", source, gradients + inside);
    classes.requantise = add("gradients of the node reduced and quantised again", "both payloads", source,
                             inside + ofNode * 2 + between);
    classes.dequantise = add("gradients dequantised and averaged", "payload + d x shard", source,
                             between + share(ofNode, 1, std::max<std::int64_t>(1, m_cluster->nodes)));
}

} // namespace shardwright
