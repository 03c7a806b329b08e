#include "executor/engine/sign_verbs.hpp"

#include <stdexcept>

#include <fmt/format.h>

#include "executor/comm/sign_compression.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kCompressed = 4; // values, what was left over, signs, scale
constexpr std::int64_t kFloatBytes = 4;

std::int64_t bytesOf(const Buffers& buffers, BufferId buffer)
{
    return buffers.shape(buffer).bytes.count();
}

float* floatsOf(const Buffers& buffers, BufferId buffer)
{
    if (buffers.shape(buffer).dtype != DType::Fp32)
        throw std::logic_error(
            fmt::format("\"{}\" is not in fp32: signs are made of nothing else", buffers.nameOf(buffer)));
    return buffers.view(buffer).as<float>();
}

void expect(bool fits, const Buffers& buffers, Verb verb, BufferId first, BufferId second)
{
    if (!fits)
        throw std::logic_error(fmt::format("{} of \"{}\" ({} B) and \"{}\" ({} B), which do not fit", nameOf(verb),
                                           buffers.nameOf(first), bytesOf(buffers, first), buffers.nameOf(second),
                                           bytesOf(buffers, second)));
}

void compress(Buffers& buffers, std::span<const BufferId> writes)
{
    if (writes.size() != kCompressed)
        throw std::logic_error("compress writes values, what is left over, signs and their scale");
    const std::int64_t count = bytesOf(buffers, writes[0]) / kFloatBytes;
    expect(bytesOf(buffers, writes[1]) == count * kFloatBytes, buffers, Verb::Compress, writes[0], writes[1]);
    expect(bytesOf(buffers, writes[2]) == ceilDivide(count, 8), buffers, Verb::Compress, writes[0], writes[2]);
    expect(bytesOf(buffers, writes[3]) == kFloatBytes, buffers, Verb::Compress, writes[0], writes[3]);
    compressSigns(floatsOf(buffers, writes[0]), floatsOf(buffers, writes[1]), count, buffers.data(writes[2]),
                  floatsOf(buffers, writes[3]));
}

void decode(Verb verb, Buffers& buffers, std::span<const BufferId> reads, BufferId to)
{
    if (reads.size() != 2)
        throw std::logic_error(fmt::format("{} reads signs and their scales", nameOf(verb)));
    const std::int64_t parts = bytesOf(buffers, reads[1]) / kFloatBytes;
    const std::int64_t elements = bytesOf(buffers, to) / kFloatBytes;
    expect(parts > 0, buffers, verb, reads[1], to);
    const std::int64_t count = verb == Verb::AverageSigns ? elements : elements / parts;
    expect(count % 8 == 0 && bytesOf(buffers, reads[0]) == count * parts / 8 &&
               (verb == Verb::AverageSigns || count * parts == elements),
           buffers, verb, reads[0], to);
    if (verb == Verb::AverageSigns)
        averageSigns(buffers.data(reads[0]), floatsOf(buffers, reads[1]), parts, count, floatsOf(buffers, to));
    else
        expandSigns(buffers.data(reads[0]), floatsOf(buffers, reads[1]), parts, count, floatsOf(buffers, to));
}

} // namespace

void runSignVerb(Verb verb, Buffers& buffers, std::span<const BufferId> reads, std::span<const BufferId> writes)
{
    if (verb == Verb::Compress)
        compress(buffers, writes);
    else
        decode(verb, buffers, reads, writes.front());
    for (const BufferId buffer : writes)
        buffers.touch(buffer);
}

} // namespace shardwright
