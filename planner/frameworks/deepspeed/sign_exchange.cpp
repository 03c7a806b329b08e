#include "planner/frameworks/deepspeed/sign_exchange.hpp"

#include <numeric>

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::string_view kSource = "runtime/comm/nccl.py compressed_allreduce";

constexpr BufferSpec kWorkerError{"compression error of the worker",
                                  "4 B x p, padded",
                                  "runtime/fp16/onebit/adam.py worker_error",
                                  C::OptimizerStates,
                                  Place::Gpu,
                                  S::Compute,
                                  L::FromFirstStep};
constexpr BufferSpec kServerError{"compression error of the server",
                                  "4 B x p / N, padded",
                                  "runtime/fp16/onebit/adam.py server_error",
                                  C::OptimizerStates,
                                  Place::Gpu,
                                  S::Compute,
                                  L::FromFirstStep};
constexpr BufferSpec kValues{"momentum, padded", "4 B x p, padded", "compressed_allreduce: torch.cat",
                             C::CommunicationBuffers};
constexpr BufferSpec kSignTemporaries{"scaled signs and the new error", "8 B x p, padded",
                                      "compressed_allreduce: worker_error.set_", C::Temporaries};
constexpr BufferSpec kPacked{"signs before they are stacked", "p / 8 B", "compressed_allreduce: torch.stack",
                             C::CommunicationBuffers};
constexpr BufferSpec kSigns{"signs of the momentum", "p / 8 B", kSource, C::CommunicationBuffers};
constexpr BufferSpec kScale{"scale of the signs", "4 B", kSource, C::CommunicationBuffers};
constexpr BufferSpec kReceived{"signs of all ranks", "p / 8 B", kSource, C::CommunicationBuffers};
constexpr BufferSpec kScales{"scales of all ranks", "4 B x N", kSource, C::CommunicationBuffers};
constexpr BufferSpec kUnpacked{"signs unpacked to bytes and to fp32", "5 B x p, padded",
                               "compressed_allreduce: cupy.unpackbits, float()", C::Temporaries};
constexpr BufferSpec kMean{"averaged part of the momentum", "4 B x p / N", "compressed_allreduce: compensated_server_m",
                           C::CommunicationBuffers};
constexpr BufferSpec kServerSigns{"signs of the averaged part", "p / 8 B / N", kSource, C::CommunicationBuffers};

// Bytes that a compression moves an element, kernel by kernel, fp32 read and written: the error added 12, the norm 4;
// the new error from sign 8, add_ 8, bool 5, float 5, add_ 8, mul_ 8, scaling 8 and the subtraction 12; then sign_ 8,
// add_ 8, bool 5 and the packing of a byte a sign 1.
constexpr std::int64_t kCompressing = 100;
// A byte a sign unpacked 1, float 5, add_ 8, mul_ 8; scaled 8.
constexpr std::int64_t kExpanding = 30;
constexpr std::int64_t kAveraging = 12; // divided by the ranks 8 and summed 4
constexpr std::int64_t kCopyingBack = 8;

constexpr std::int64_t kSignsAByte = 8;

} // namespace

SignExchange::SignExchange(const FlatOrder& order, bool together) : m_order(order)
{
    const std::size_t tensors = order.tensors().size();
    if (together)
        m_exchanges.push_back({order.elements(), 0, tensors});
    else
        for (std::size_t i = 0; i < tensors; ++i)
            m_exchanges.push_back({order.tensors()[i].numel, i, i + 1});
}

/// onebit/adam.py "divider".
std::int64_t SignExchange::multiple() const
{
    return std::lcm(m_ranks, kSignsAByte);
}

void SignExchange::define(SizeTable& sizes, std::int64_t ranks, GroupId world, DType model, bool executes)
{
    m_ranks = ranks;
    m_world = world;
    m_classes.clear();
    for (const Exchange& exchange : m_exchanges)
        if (m_classes.count(exchange.elements) == 0)
            m_classes.emplace(exchange.elements, define(sizes, exchange.elements, model, executes));
}

SignExchange::Classes SignExchange::define(SizeTable& sizes, std::int64_t elements, DType model, bool executes) const
{
    const std::int64_t length = padded(elements);
    const std::int64_t part = length / m_ranks;
    const Bytes wide = bytesOf(length, DType::Fp32);
    const Bytes bits(length / kSignsAByte);
    const Bytes scales = bytesOf(m_ranks, DType::Fp32);
    const auto exists = [](bool wanted, Bytes bytes) { return wanted ? bytes : Bytes(0); };
    Classes classes;
    classes.workerError = sizes.addBuffer(kWorkerError, wide);
    classes.serverError = sizes.addBuffer(kServerError, bytesOf(part, DType::Fp32));
    classes.values = sizes.addBuffer(kValues, exists(executes || length != elements, wide));
    classes.signTemporaries = sizes.addBuffer(kSignTemporaries, exists(!executes, wide * 2));
    classes.packed = sizes.addBuffer(kPacked, exists(!executes, bits));
    classes.signs = sizes.addBuffer(kSigns, bits);
    classes.scale = sizes.addBuffer(kScale, bytesOf(1, DType::Fp32));
    classes.received = sizes.addBuffer(kReceived, bits);
    classes.scales = sizes.addBuffer(kScales, scales);
    classes.unpacked = sizes.addBuffer(kUnpacked, exists(!executes, wide + Bytes(length)));
    classes.mean = sizes.addBuffer(kMean, bytesOf(part, DType::Fp32));
    classes.serverSigns = sizes.addBuffer(kServerSigns, Bytes(part / kSignsAByte));
    const auto add = [&](std::string_view name, std::string_view formula, Bytes bytes) {
        return sizes.addPayload({name, formula, kSource, bytes, model});
    };
    const auto bytes = [](std::int64_t count, std::int64_t each) { return Bytes(checkedMultiply(count, each)); };
    classes.sendSigns = add("signs of the momentum", "p / 8 B, padded", bits);
    classes.sendScale = add("scales of the momentum", "4 B x N", scales);
    classes.gatherSigns = add("signs of the averaged momentum", "p / 8 B, padded", bits);
    classes.gatherScale = add("scales of the averaged momentum", "4 B x N", scales);
    classes.compress = add("momentum compressed to signs", "100 B x p", bytes(length, kCompressing));
    classes.recompress = add("signs averaged and compressed again", "42 B x p + 100 B x p/N",
                             bytes(length, kExpanding + kAveraging) + bytes(part, kCompressing));
    classes.expand = add("gathered signs decompressed", "38 B x p", bytes(length, kExpanding + kCopyingBack));
    return classes;
}

Bytes SignExchange::errorBytes() const
{
    Bytes all;
    for (const Exchange& exchange : m_exchanges)
        all += bytesOf(padded(exchange.elements) + padded(exchange.elements) / m_ranks, DType::Fp32);
    return all;
}

Layout SignExchangeEmission::whole(const SignExchange::Exchange& exchange) const
{
    Layout layout = wholeLayout(tensorsOf(m_rules.m_order.tensors(), exchange.firstTensor, exchange.endTensor));
    layout.multiple = m_rules.m_ranks * m_rules.multiple();
    return layout;
}

Layout SignExchangeEmission::part(const SignExchange::Exchange& exchange) const
{
    Layout layout = whole(exchange);
    layout.cut = Cut::EachFlat;
    layout.parts = m_rules.m_ranks;
    layout.multiple = m_rules.multiple();
    return layout;
}

BufferId SignExchangeEmission::allocate(BufferClassId bufferClass, const Layout& layout, Codec codec,
                                        Quantity quantity) const
{
    const bool cut = layout.cut != Cut::Whole;
    Content content{quantity, DType::Fp32, layout, cut ? m_rules.m_world : -1};
    content.codec = codec;
    return m_record.allocate(bufferClass, content);
}

BufferId SignExchangeEmission::allocateScales(BufferClassId bufferClass, bool all) const
{
    Layout layout{{}, Cut::EachFlat, m_rules.m_ranks};
    layout.allParts = all;
    layout.room = all ? m_rules.m_ranks : 1;
    return allocate(bufferClass, layout, Codec::None, Quantity::Gradients);
}

void SignExchangeEmission::allocateErrors()
{
    for (const SignExchange::Exchange& exchange : m_rules.m_exchanges) {
        const SignExchange::Classes& classes = classesOf(exchange);
        Errors errors;
        errors.worker = allocate(classes.workerError, whole(exchange), Codec::None, Quantity::Error);
        errors.server = allocate(classes.serverError, part(exchange), Codec::None, Quantity::Error);
        m_record.initialize({errors.worker, errors.server});
        m_errors.push_back(errors);
    }
}

void SignExchangeEmission::exchange(BufferId moments)
{
    for (std::size_t i = 0; i < m_rules.m_exchanges.size(); ++i)
        exchange(m_rules.m_exchanges[i], m_errors[i], moments);
}

void SignExchangeEmission::keepErrors()
{
    for (std::size_t i = 0; i < m_errors.size(); ++i) {
        const SignExchange::Exchange& exchange = m_rules.m_exchanges[i];
        m_record.hold(m_errors[i].worker, Quantity::Error, DType::Fp32, whole(exchange));
        m_record.hold(m_errors[i].server, Quantity::Error, DType::Fp32, part(exchange), m_rules.m_world);
    }
}

OpId SignExchangeEmission::op(OpKind kind, PayloadId payload, GroupId group)
{
    const OpId id = m_builder.op(kind, Stream::Compute, Phase::Optimizer);
    m_builder.send(payload, group);
    return id;
}

/// What is on its way counts as gradients: momentum is gradients averaged over steps.
void SignExchangeEmission::exchange(const SignExchange::Exchange& exchange, const Errors& errors, BufferId moments)
{
    const SignExchange::Classes& classes = classesOf(exchange);
    const GroupId world = m_rules.m_world;
    const Layout mine = part(exchange);
    Layout parts = mine;
    parts.allParts = true;
    const auto once = [this](BufferClassId temporary) { m_builder.free(m_record.allocateScratch(temporary)); };
    const auto sign = [&](BufferId values, BufferId error, BufferId signs, BufferId scale) {
        if (m_record.records())
            m_builder.act(Verb::Compress, {}, {values, error, signs, scale});
    };

    op(OpKind::Quantize, classes.compress);
    const BufferId values = allocate(classes.values, whole(exchange), Codec::None, Quantity::Gradients);
    once(classes.signTemporaries);
    const BufferId packed = m_record.allocateScratch(classes.packed);
    const BufferId signs = allocate(classes.signs, parts, Codec::Bits, Quantity::Gradients);
    const BufferId scale = allocateScales(classes.scale, false);
    m_record.move({moments}, {values});
    sign(values, errors.worker, signs, scale);

    op(OpKind::AllToAll, classes.sendSigns, world);
    const BufferId received = allocate(classes.received, parts, Codec::Bits, Quantity::Gradients);
    m_record.collective(Verb::AllToAll, world, {signs}, {received});
    m_builder.free(packed);
    m_builder.free(signs);
    op(OpKind::AllGather, classes.sendScale, world);
    const BufferId scales = allocateScales(classes.scales, true);
    m_record.collective(Verb::AllGather, world, {scale}, {scales});

    op(OpKind::Quantize, classes.recompress);
    once(classes.unpacked);
    const BufferId mean = allocate(classes.mean, mine, Codec::None, Quantity::Gradients);
    const BufferId serverSigns = allocate(classes.serverSigns, mine, Codec::Bits, Quantity::Gradients);
    if (m_record.records())
        m_builder.act(Verb::AverageSigns, {received, scales}, {mean});
    sign(mean, errors.server, serverSigns, scale);
    m_builder.free(received);
    m_builder.free(mean);

    op(OpKind::AllGather, classes.gatherSigns, world);
    const BufferId gathered = allocate(classes.received, parts, Codec::Bits, Quantity::Gradients);
    m_record.collective(Verb::AllGather, world, {serverSigns}, {gathered});
    op(OpKind::AllGather, classes.gatherScale, world);
    m_record.collective(Verb::AllGather, world, {scale}, {scales});

    op(OpKind::Dequantize, classes.expand);
    const BufferId stacked = m_record.allocateScratch(classes.packed);
    once(classes.unpacked);
    if (m_record.records())
        m_builder.act(Verb::ExpandSigns, {gathered, scales}, {values});
    m_record.move({values}, {moments});
    for (const BufferId gone : {stacked, gathered, serverSigns, scales, scale, values})
        m_builder.free(gone);
}

} // namespace shardwright
