// ZeRO++'s qgZ under ZeRO-3 (zero_quantized_gradients): sizes, schedule and what to know of it. Each tensor's gradient
// is quantised to int4 by itself, goes to the ranks of equal place in the node, is summed, quantised again, goes
// between nodes and is averaged: runtime/comm/coalesced_collectives.py all_to_all_quant_reduce
// ("all_to_all_quant_reduce"), csrc/quantization/swizzled_quantize.cu, quant_reduce.cu.

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "planner/frameworks/deepspeed/zero3_emission.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kGradientsPerByte = 2; // int4
constexpr std::string_view kSource = "runtime/comm/coalesced_collectives.py all_to_all_quant_reduce";

constexpr BufferSpec kInsidePayload{"int4 gradient of a tensor and its scales",
                                    "numel/2 + 4 B x groups",
                                    kSource,
                                    Category::CommunicationBuffers,
                                    Place::Gpu,
                                    Stream::Reduce};
constexpr BufferSpec kBetweenPayload{"int4 gradient of a tensor, summed in the node, and its scales",
                                     "(numel/2 + 4 B x groups) / GPUs a node",
                                     kSource,
                                     Category::CommunicationBuffers,
                                     Place::Gpu,
                                     Stream::Reduce};
constexpr BufferSpec kDequantisedParts{"dequantised gradient parts of all nodes",
                                       "w x numel / GPUs a node",
                                       kSource,
                                       Category::CommunicationBuffers,
                                       Place::Gpu,
                                       Stream::Reduce};
constexpr BufferSpec kOwnMean{"mean of a tensor's gradient, this rank's part",
                              "w x numel/N",
                              kSource,
                              Category::CommunicationBuffers,
                              Place::Gpu,
                              Stream::Reduce};
constexpr BufferSpec kPaddedGradient{"reduce-scatter input of a tensor that is not quantised",
                                     "w x numel, padded to N",
                                     "runtime/comm/coalesced_collectives.py reduce_scatter_coalesced",
                                     Category::CommunicationBuffers,
                                     Place::Gpu,
                                     Stream::Reduce};

/// all_to_all_quant_reduce intra_quant_group: scales of a tensor.
std::int64_t scalesOf(std::int64_t longestSide, std::int64_t ranks)
{
    return std::max(longestSide, ranks);
}

} // namespace

void Zero3Rules::findTwoHopKinds()
{
    std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> known;
    for (const FlatTensor& tensor : m_buckets.tensors) {
        const auto [kind, fresh] = known.emplace(std::pair(tensor.numel, tensor.longestSide), m_twoHops.size());
        if (fresh) {
            TwoHopClasses classes;
            classes.numel = tensor.numel;
            classes.longestSide = tensor.longestSide;
            m_twoHops.push_back(classes);
        }
        m_twoHopKinds.push_back(kind->second);
    }
}

void Zero3Rules::defineTwoHops()
{
    const std::int64_t local = m_cluster->gpusPerNode;
    for (TwoHopClasses& tensor : m_twoHops) {
        const std::int64_t numel = tensor.numel;
        tensor.compressed = tensor.longestSide > 0 && numel % checkedMultiply(2, m_ranks) == 0;
        const std::int64_t scales = scalesOf(tensor.longestSide, m_ranks);
        tensor.block = std::max<std::int64_t>(1, numel / scales);
        // The executor gives each rank's part scales of its own.
        const std::int64_t sent = executes() ? roundUp(scales, m_ranks) : scales;
        const auto encoded = [&](std::int64_t share) {
            return tensor.compressed
                       ? Bytes(numel / checkedMultiply(kGradientsPerByte, share)) + bytesOf(sent / share, DType::Fp32)
                       : Bytes(0);
        };
        const auto ofCompressed = [&](std::int64_t elements) {
            return tensor.compressed ? bytesOf(elements, m_dtypes.wire) : Bytes(0);
        };
        const Bytes inside = encoded(1);
        const Bytes between = encoded(local);
        const Bytes dequantised = ofCompressed(numel / local);
        const Bytes output = ofCompressed(numel / m_ranks);
        const std::int64_t padded = roundUp(numel, m_ranks);
        const Bytes scattered = tensor.compressed ? Bytes(0) : bytesOf(padded, m_dtypes.wire);
        tensor.inside = m_sizes.addBuffer(kInsidePayload, inside);
        tensor.between = m_sizes.addBuffer(kBetweenPayload, between);
        tensor.dequantised = m_sizes.addBuffer(kDequantisedParts, dequantised);
        tensor.output = m_sizes.addBuffer(kOwnMean, output);
        tensor.padded = m_sizes.addBuffer(kPaddedGradient, padded == numel ? Bytes(0) : scattered);
        const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes bytes,
                                DType native) {
            return m_sizes.addPayload({name, formula, source, bytes, native});
        };
        tensor.insidePayload =
            add("int4 gradients inside the node", "numel/2 + 4 B x groups", kSource, inside, m_dtypes.model);
        tensor.betweenPayload = add("int4 gradients between nodes", "(numel/2 + 4 B x groups) / GPUs a node", kSource,
                                    between, m_dtypes.model);
        tensor.scatter =
            add("gradient that is not quantised", "w x numel, padded to N",
                "runtime/comm/coalesced_collectives.py reduce_scatter_coalesced", scattered, m_dtypes.wire);
        tensor.quantise = add("gradient quantised to int4", "w x numel + payload", kSource,
                              ofCompressed(numel) + inside, m_dtypes.wire);
        tensor.requantise = add("gradient summed in the node and quantised again", "both payloads", kSource,
                                inside + between, m_dtypes.wire);
        // Widened, summed node by node into a new tensor each, and divided.
        const std::int64_t nodes = m_cluster->nodes;
        tensor.dequantise = add("gradient dequantised and averaged", "payload + w x numel / GPUs a node + sums",
                                kSource, between + dequantised + output * (3 * nodes + 2), m_dtypes.wire);
        tensor.divide = add("gradient divided by the ranks", "2 w x numel, and twice that where it is padded",
                            "runtime/comm/coalesced_collectives.py reduce_scatter_coalesced",
                            scattered * (padded == numel ? 2 : 4), m_dtypes.wire);
    }
}

std::vector<Note> Zero3Rules::twoHopNotes() const
{
    if (!m_options.quantizedGradients || executes())
        return {};
    std::vector<Note> notes;
    std::int64_t left = 0;    // elements that are not quantised
    std::int64_t garbled = 0; // tensors
    for (const std::size_t kind : m_twoHopKinds) {
        const TwoHopClasses& tensor = m_twoHops[kind];
        left += tensor.compressed ? 0 : tensor.numel;
        garbled += tensor.compressed && scalesOf(tensor.longestSide, m_ranks) % m_ranks != 0 ? 1 : 0;
    }
    if (m_dtypes.wire != DType::Fp16)
        notes.push_back({fmt::format("DeepSpeed's gradient quantiser reads the bits of {} gradients as fp16, so other "
                                     "numbers come out of it; communication_data_type fp16 casts before",
                                     nameOf(m_dtypes.wire)),
                         Provenance::Vendor, "csrc/quantization/pt_binding.cpp ds_swizzle_quant"});
    if (garbled > 0)
        notes.push_back(
            {fmt::format("{} tensors have a longest side that {} ranks do not divide: DeepSpeed's quantiser "
                         "leaves out their last rows and shifts the others between ranks; pad them",
                         garbled, m_ranks),
             Provenance::Vendor, "csrc/quantization/swizzled_quantize.cu launch_swizzled_quant_impl"});
    if (left > 0)
        notes.push_back({fmt::format("{} gradient elements, of vectors and of tensors that 2 x {} does not divide, are "
                                     "reduce-scattered unquantised, tensor by tensor",
                                     left, m_ranks),
                         Provenance::Vendor, std::string(kSource)});
    if (m_cluster->gpusPerNode > 1)
        notes.push_back(
            {fmt::format("quantised gradients come out {} times too large against the others: the first hop "
                         "sums inside the node and only the second averages",
                         m_cluster->gpusPerNode),
             Provenance::Vendor, std::string(kSource)});
    return notes;
}

Content Zero3Emission::quantisedGradient(const Zero3Rules::TwoHopClasses& classes, Layout layout, GroupId group,
                                         std::int64_t versions) const
{
    Content content;
    content.quantity = Quantity::Gradients;
    content.dtype = m_rules.m_dtypes.wire;
    content.layout = std::move(layout);
    content.group = group;
    content.codec = Codec::Int4Blockwise;
    content.block = classes.block;
    content.versions = versions;
    return content;
}

Zero3Emission::Buffers Zero3Emission::reduceInTwoHops(const BucketFlush& flush, const Buffers& reduced)
{
    std::vector<std::size_t> order; // stage3.py __reduce_and_partition_ipg_grads sorts by ds_id
    for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i)
        order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [this](std::size_t left, std::size_t right) {
        return m_rules.m_buckets.tensors[left].tensor < m_rules.m_buckets.tensors[right].tensor;
    });
    Buffers outputs;
    TwoHops hops;
    for (const std::size_t i : order) {
        const Zero3Rules::TwoHopClasses& classes = m_rules.m_twoHops[m_rules.m_twoHopKinds[i]];
        const std::int32_t tensor = m_rules.m_buckets.tensors[i].tensor;
        outputs.push_back(classes.compressed ? hop(classes, tensor, hops, reduced)
                                             : scatterAlone(classes, tensor, reduced));
    }
    for (BufferId* buffer : {&hops.inside, &hops.arrivedInside, &hops.between, &hops.arrivedBetween, &hops.dequantised})
        drop(*buffer);
    return outputs;
}

BufferId Zero3Emission::hop(const Zero3Rules::TwoHopClasses& classes, std::int32_t tensor, TwoHops& hops,
                            const Buffers& reduced)
{
    const GroupId inside = m_rules.m_insideGroup;
    const GroupId between = m_rules.m_betweenGroup;
    const auto ranksOf = [this](GroupId group) {
        return m_rules.m_sizes.groups[static_cast<std::size_t>(group)].ranks;
    };
    // Names of Python are bound to the next tensor's buffers before those of the last go.
    const auto replace = [this](BufferId& buffer, BufferId fresh) {
        drop(buffer);
        buffer = fresh;
    };
    const auto exchange = [&](GroupId group, BufferId sent, BufferId received) {
        m_record.collective(Verb::AllToAll, group, {sent}, {received});
        if (ranksOf(group) == 1)
            m_record.move({sent}, {received});
    };
    // Pieces of all ranks, those for a GPU of the node together; then this GPU's of all nodes; then this rank's.
    Layout swizzled{{tensor}, Cut::Swizzled, ranksOf(inside), ranksOf(between), true};
    copy(OpKind::Quantize, m_reduceStream, Phase::Backward, classes.quantise);
    replace(hops.inside, m_record.allocate(classes.inside, quantisedGradient(classes, swizzled, inside, 1)));
    m_record.move(reduced, {hops.inside});
    swizzled.allParts = false;
    m_builder.op(OpKind::AllToAll, m_reduceStream, Phase::Backward, m_layer);
    replace(hops.arrivedInside,
            m_record.allocate(classes.inside, quantisedGradient(classes, swizzled, inside, ranksOf(inside))));
    m_builder.send(classes.insidePayload, inside);
    exchange(inside, hops.inside, hops.arrivedInside);

    copy(OpKind::Quantize, m_reduceStream, Phase::Backward, classes.requantise);
    replace(hops.between, m_record.allocate(classes.between, quantisedGradient(classes, swizzled, inside, 1)));
    m_record.move({hops.arrivedInside}, {hops.between});
    m_builder.op(OpKind::AllToAll, m_reduceStream, Phase::Backward, m_layer);
    replace(hops.arrivedBetween,
            m_record.allocate(classes.between,
                              quantisedGradient(classes, shardsOf({tensor}), m_rules.m_shardGroup, ranksOf(between))));
    m_builder.send(classes.betweenPayload, between);
    exchange(between, hops.between, hops.arrivedBetween);

    copy(OpKind::Dequantize, m_reduceStream, Phase::Backward, classes.dequantise);
    replace(hops.dequantised, m_record.allocateScratch(classes.dequantised));
    BufferId sum = m_record.allocateScratch(classes.output);
    const BufferId output = m_record.allocateScratch(classes.output);
    drop(sum);
    m_record.move({hops.arrivedBetween}, reduced);
    return output;
}

BufferId Zero3Emission::scatterAlone(const Zero3Rules::TwoHopClasses& classes, std::int32_t tensor,
                                     const Buffers& reduced)
{
    copy(OpKind::Copy, m_reduceStream, Phase::Backward, classes.divide);
    const BufferId padded = m_record.allocateScratch(classes.padded);
    const OpId scattering = m_builder.op(OpKind::ReduceScatter, m_reduceStream, Phase::Backward, m_layer);
    m_builder.send(classes.scatter, m_rules.m_shardGroup);
    takeTurn(scattering);
    if (records())
        m_record.collective(
            Verb::ReduceScatter, m_rules.m_shardGroup, {}, reduced,
            m_builder.content({Quantity::Gradients, m_rules.m_dtypes.wire, shardsOf({tensor}), m_rules.m_shardGroup}));
    return padded;
}

} // namespace shardwright
