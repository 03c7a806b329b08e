#include "executor/engine/moves.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include <fmt/format.h>

#include "executor/comm/codec.hpp"
#include "executor/elements.hpp"

namespace shardwright {

namespace {

std::int64_t bytesAt(std::int64_t element, DType dtype)
{
    return bytesOf(element, dtype).count();
}

} // namespace

template <typename Each> void OpenBuffer::forEachStretch(const Each& visit)
{
    const Content& content = m_buffers.held(m_buffer)->content;
    const Encoding encoding{content.codec, content.block};
    const std::int64_t stretches = encodedStretches(content);
    const std::int64_t each = static_cast<std::int64_t>(m_decoded.size()) / stretches;
    std::byte* encoded = m_encoded;
    for (std::int64_t version = 0; version < content.versions; ++version)
        for (std::int64_t stretch = 0; stretch < stretches; ++stretch) {
            visit(encoding, encoded, m_decoded.data() + each * stretch, each);
            encoded += encodedBytes(encoding, each).count();
        }
}

void OpenBuffer::decodeAll()
{
    const std::int64_t versions = m_buffers.held(m_buffer)->content.versions;
    std::vector<float> one;
    forEachStretch([&](const Encoding& encoding, std::byte* encoded, float* values, std::int64_t count) {
        if (versions == 1) {
            decode(encoding, encoded, count, values, DType::Fp32);
            return;
        }
        one.resize(static_cast<std::size_t>(count));
        decode(encoding, encoded, count, one.data(), DType::Fp32);
        addElements(one.data(), DType::Fp32, values, DType::Fp32, count);
    });
    if (versions > 1)
        scaleElements(m_decoded.data(), DType::Fp32, static_cast<std::int64_t>(m_decoded.size()),
                      1.0 / static_cast<double>(versions));
}

OpenBuffer::OpenBuffer(Buffers& buffers, BufferId buffer, Use use) : m_buffers(buffers), m_buffer(buffer), m_use(use)
{
    m_dtype = buffers.shape(buffer).dtype;
    if (buffers.inMemory(buffer)) {
        m_data = buffers.data(buffer);
    } else {
        m_file.resize(static_cast<std::size_t>(buffers.shape(buffer).bytes.count()));
        if (use != Use::Overwrite)
            buffers.readFile(buffer, m_file.data());
        m_data = m_file.data();
    }
    if (const Held* held = buffers.held(buffer); held != nullptr && held->content.codec != Codec::None) {
        m_encoded = m_data;
        m_decoded.assign(static_cast<std::size_t>(held->elements), 0.0F);
        if (held->content.versions > 1 && use != Use::Read)
            throw std::logic_error(fmt::format("\"{}\" holds {} ranks' values: an all-to-all alone writes it",
                                               buffers.nameOf(buffer), held->content.versions));
        if (use != Use::Overwrite)
            decodeAll();
        m_data = static_cast<std::byte*>(static_cast<void*>(m_decoded.data()));
        m_dtype = DType::Fp32;
    }
}

void OpenBuffer::close()
{
    if (m_use == Use::Read)
        return;
    if (m_encoded != nullptr)
        forEachStretch([](const Encoding& encoding, std::byte* encoded, const float* values, std::int64_t count) {
            encode(encoding, values, DType::Fp32, count, encoded);
        });
    if (!m_buffers.inMemory(m_buffer))
        m_buffers.writeFile(m_buffer, m_file.data());
}

const std::vector<Run>& Mover::runs(BufferId from, BufferId to)
{
    const auto key = std::pair(m_buffers.shape(from).held, m_buffers.shape(to).held);
    const auto known = m_runs.find(key);
    if (known != m_runs.end())
        return known->second;
    return m_runs.emplace(key, common(*m_buffers.held(from), *m_buffers.held(to))).first->second;
}

void Mover::move(std::span<const BufferId> reads, std::span<const BufferId> writes, bool add)
{
    for (std::size_t i = 0; i < writes.size(); ++i) {
        const BufferId to = writes[i];
        if (m_buffers.held(to) == nullptr)
            copyBytes(reads[i], to, add);
        else
            for (const BufferId from : reads)
                copyElements(from, to, add);
        m_buffers.touch(to);
    }
}

/// Tensors of the layers, whole.
void Mover::copyBytes(BufferId from, BufferId to, bool add)
{
    const BufferShape& shape = m_buffers.shape(from);
    if (m_buffers.held(from) == nullptr && m_buffers.written(from) == 0)
        throw std::logic_error(fmt::format("\"{}\" is read before anything wrote it", m_buffers.nameOf(from)));
    if (shape.bytes != m_buffers.shape(to).bytes)
        throw std::logic_error(fmt::format("\"{}\" ({} B) does not go into \"{}\" ({} B)", m_buffers.nameOf(from),
                                           shape.bytes.count(), m_buffers.nameOf(to),
                                           m_buffers.shape(to).bytes.count()));
    OpenBuffer source(m_buffers, from, OpenBuffer::Use::Read);
    OpenBuffer target(m_buffers, to, add ? OpenBuffer::Use::Change : OpenBuffer::Use::Overwrite);
    if (add)
        addElements(source.data(), shape.dtype, target.data(), shape.dtype,
                    shape.bytes.count() * 8 / bitsOf(shape.dtype));
    else
        std::memcpy(target.data(), source.data(), static_cast<std::size_t>(shape.bytes.count()));
    target.close();
    m_recorder.moved(m_buffers.place(from), m_buffers.place(to), shape.bytes);
}

void Mover::copyElements(BufferId from, BufferId to, bool add)
{
    if (m_buffers.held(from) == nullptr)
        throw std::logic_error(
            fmt::format("\"{}\" has no content that \"{}\" could take", m_buffers.nameOf(from), m_buffers.nameOf(to)));
    const std::vector<Run>& shared = runs(from, to);
    const Held& source = *m_buffers.held(from);
    const Held& target = *m_buffers.held(to);
    const bool alike = source.content.layout == target.content.layout && source.content.group == target.content.group;
    const Held* partition = m_buffers.place(from) == Place::Nvme || m_buffers.place(to) == Place::Nvme
                                ? smallerPartition(source, target)
                                : nullptr;
    if (shared.empty() && !alike && partition == nullptr)
        return;
    std::int64_t wanted = 0;
    for (const Piece& piece : target.pieces)
        wanted += piece.count;
    const bool whole = !add && elementsOf(shared) == wanted;
    OpenBuffer reading(m_buffers, from, OpenBuffer::Use::Read);
    OpenBuffer writing(m_buffers, to, whole ? OpenBuffer::Use::Overwrite : OpenBuffer::Use::Change);
    for (const Run& run : shared) {
        const std::byte* read = reading.data() + bytesAt(run.from, reading.dtype());
        std::byte* write = writing.data() + bytesAt(run.to, writing.dtype());
        if (add)
            addElements(read, reading.dtype(), write, writing.dtype(), run.count);
        else
            convertElements(read, reading.dtype(), write, writing.dtype(), run.count);
    }
    writing.close();
    // Between equal partitions the buffer goes over as it is, padding included; to files and back whole partitions of
    // tensors do (DeepSpeed swap_tensor/utils.py swap_in_tensors, swap_out_tensors).
    countMoved(from, to, alike ? source.elements : partition != nullptr ? partition->filled : elementsOf(shared));
}

/// What is cast on its way goes over in the dtype it arrives in: torch casts on the device before a copy down, and
/// makes its temporary of a copy up in the device's dtype (aten/src/ATen/native/cuda/Copy.cu). Files are read as they
/// are.
void Mover::countMoved(BufferId from, BufferId to, std::int64_t elements)
{
    const Place source = m_buffers.place(from);
    const BufferId over = source == Place::Nvme ? from : to;
    const Held& held = *m_buffers.held(over);
    m_recorder.moved(source, m_buffers.place(to),
                     held.content.codec == Codec::None ? bytesOf(elements, held.content.dtype)
                                                       : m_buffers.shape(over).bytes);
}

void Mover::initialize(BufferId buffer, const WeightSource& weights)
{
    const Held* held = m_buffers.held(buffer);
    OpenBuffer writing(m_buffers, buffer, OpenBuffer::Use::Overwrite);
    std::memset(writing.data(), 0,
                static_cast<std::size_t>(bytesOf(held != nullptr ? held->filled : 0, writing.dtype()).count()));
    if (held != nullptr && held->content.quantity == Quantity::Parameters) {
        std::vector<float> values;
        for (const Piece& piece : held->pieces) {
            values.resize(static_cast<std::size_t>(piece.count));
            weights.read(piece.tensor, piece.first, piece.count, values.data());
            convertElements(values.data(), DType::Fp32, writing.data() + bytesAt(piece.at, writing.dtype()),
                            writing.dtype(), piece.count);
        }
    }
    writing.close();
    m_buffers.touch(buffer);
}

} // namespace shardwright
