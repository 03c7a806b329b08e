#include "executor/engine/buffers.hpp"

#include <cstring>
#include <stdexcept>

#include <fmt/format.h>

namespace shardwright {

namespace {

/// Sums and scales of blocks go over padding, which must be zeros. Parameters are all written before they are read:
/// only what lies between them is cleared, where they stand in order. Moments and sums begin at zero.
void clear(const Held& held, std::byte* memory)
{
    const DType dtype = held.content.dtype;
    const auto zero = [&](std::int64_t from, std::int64_t to) {
        std::memset(memory + bytesOf(from, dtype).count(), 0,
                    static_cast<std::size_t>(bytesOf(to - from, dtype).count()));
    };
    std::int64_t end = 0;
    if (held.content.quantity == Quantity::Parameters && held.content.versions == 1 && bitsOf(dtype) >= 8)
        for (const Piece& piece : held.pieces) {
            if (piece.at < end) {
                end = 0;
                break;
            }
            zero(end, piece.at);
            end = piece.at + piece.count;
        }
    zero(end, held.filled);
}

} // namespace

Buffers::Buffers(const Schedule& schedule, const Shapes& shapes, Arena& arena, NvmeFiles* files)
    : m_schedule(schedule), m_shapes(shapes), m_arena(arena), m_files(files), m_slots(schedule.buffers.size()),
      m_now(shapes.buffers)
{
}

Buffers::~Buffers()
{
    for (const Slot& each : m_slots)
        if (each.file >= 0)
            m_files->remove(each.file);
}

const BufferClass& Buffers::classOf(BufferId buffer) const
{
    return m_schedule.sizes.buffers[static_cast<std::size_t>(m_schedule.buffers[static_cast<std::size_t>(buffer)])];
}

const Held* Buffers::held(BufferId buffer) const
{
    const int index = shape(buffer).held;
    return index < 0 ? nullptr : &m_shapes.held[static_cast<std::size_t>(index)];
}

void Buffers::fail(BufferId buffer, const char* what) const
{
    throw std::logic_error(fmt::format("buffer {} (\"{}\") {}", buffer, nameOf(buffer), what));
}

void Buffers::allocate(BufferId buffer)
{
    Slot& fresh = slot(buffer);
    if (fresh.live)
        fail(buffer, "is made while it is there: a repetition leaves more buffers than it found");
    m_now[static_cast<std::size_t>(buffer)] = m_shapes.buffers[static_cast<std::size_t>(buffer)];
    const Bytes bytes = shape(buffer).bytes;
    const BufferSpec& spec = *classOf(buffer).spec;
    m_arena.take(spec.place, spec.category, bytes, spec.name);
    fresh.live = true;
    fresh.written = 0;
    if (spec.place == Place::Nvme) {
        if (bytes > Bytes(0) && m_files == nullptr)
            fail(buffer, "is a file that the plan says is empty");
        if (bytes > Bytes(0))
            fresh.file = m_files->create(bytes);
        return;
    }
    const auto size = static_cast<std::size_t>(bytes.count());
    fresh.memory = m_cache.take(size);
    // Room that nothing lies in is not touched.
    if (const Held* content = held(buffer); content != nullptr && content->content.codec == Codec::None)
        clear(*content, fresh.memory.get());
    else if (content != nullptr)
        std::memset(fresh.memory.get(), 0, size);
}

void Buffers::free(BufferId buffer)
{
    Slot& gone = slot(buffer);
    if (!gone.live)
        fail(buffer, "is freed but not there");
    const BufferSpec& spec = *classOf(buffer).spec;
    m_arena.give(spec.place, spec.category, shape(buffer).bytes);
    gone.live = false;
    gone.memory.reset();
    if (gone.file >= 0)
        m_files->remove(gone.file);
    gone.file = -1;
}

std::vector<BufferId> Buffers::liveIds() const
{
    std::vector<BufferId> ids;
    for (std::size_t i = 0; i < m_slots.size(); ++i)
        if (m_slots[i].live)
            ids.push_back(static_cast<BufferId>(i));
    return ids;
}

void Buffers::rename(BufferId from, BufferId to)
{
    if (!live(from) || live(to) || shape(from).bytes != shape(to).bytes)
        fail(from, "cannot take the place of another one");
    std::swap(slot(from), slot(to));
    std::swap(m_now[static_cast<std::size_t>(from)], m_now[static_cast<std::size_t>(to)]);
}

void Buffers::hold(BufferId buffer, ContentId content)
{
    const Held& held = m_shapes.held[static_cast<std::size_t>(content)];
    BufferShape& now = m_now[static_cast<std::size_t>(buffer)];
    if (bytesOf(held) > now.bytes)
        fail(buffer, "is smaller than what it is to hold");
    now.held = content;
    now.dtype = held.content.dtype;
}

std::byte* Buffers::data(BufferId buffer) const
{
    if (!live(buffer))
        fail(buffer, "is used but not there");
    if (!inMemory(buffer))
        fail(buffer, "is a file: it has to be moved to memory first");
    return slot(buffer).memory.get();
}

TensorView Buffers::view(BufferId buffer) const
{
    const BufferShape& known = shape(buffer);
    if (const Held* content = held(buffer); content != nullptr && content->content.codec != Codec::None)
        fail(buffer, "is encoded: it has to be moved to one that is not");
    return {data(buffer), known.bytes.count() * 8 / bitsOf(known.dtype), known.dtype};
}

void Buffers::readFile(BufferId buffer, std::byte* to) const
{
    if (!live(buffer))
        fail(buffer, "is read but not there");
    if (slot(buffer).file >= 0)
        m_files->read(slot(buffer).file, to, shape(buffer).bytes);
}

void Buffers::writeFile(BufferId buffer, const std::byte* from)
{
    if (!live(buffer))
        fail(buffer, "is written but not there");
    if (slot(buffer).file >= 0)
        m_files->write(slot(buffer).file, from, shape(buffer).bytes);
}

} // namespace shardwright
