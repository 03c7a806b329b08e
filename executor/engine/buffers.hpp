#pragma once

// The buffers of a schedule, live and dead: memory of the device, of the host, or files.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "executor/engine/arena.hpp"
#include "executor/engine/memory_cache.hpp"
#include "executor/engine/nvme_files.hpp"
#include "executor/engine/shapes.hpp"
#include "executor/tensor_view.hpp"

namespace shardwright {

class Buffers {
public:
    /// `files` may be nullptr where no buffer is on NVMe. All references must outlive this.
    Buffers(const Schedule& schedule, const Shapes& shapes, Arena& arena, NvmeFiles* files);
    ~Buffers();

    void allocate(BufferId buffer);
    void free(BufferId buffer);
    bool live(BufferId buffer) const { return slot(buffer).live; }
    std::vector<BufferId> liveIds() const;
    /// The storage of `from` becomes that of `to`, which is not live; they are of one class.
    void rename(BufferId from, BufferId to);

    bool inMemory(BufferId buffer) const { return place(buffer) != Place::Nvme; }
    Place place(BufferId buffer) const { return classOf(buffer).spec->place; }
    const BufferClass& classOf(BufferId buffer) const;
    std::string_view nameOf(BufferId buffer) const { return classOf(buffer).spec->name; }
    /// What it is now; of a dead buffer, what it will be.
    const BufferShape& shape(BufferId buffer) const { return m_now[static_cast<std::size_t>(buffer)]; }
    /// It holds `content` from here on, in the bytes it has.
    void hold(BufferId buffer, ContentId content);
    /// What it holds, or nullptr for tensors of the layers.
    const Held* held(BufferId buffer) const;

    /// Its memory; it must be live and in memory.
    std::byte* data(BufferId buffer) const;
    /// Its elements, which are not encoded.
    TensorView view(BufferId buffer) const;
    /// A file's content, whole.
    void readFile(BufferId buffer, std::byte* to) const;
    void writeFile(BufferId buffer, const std::byte* from);

    /// When the buffer was last written, as a number that grows; 0: never.
    std::int64_t written(BufferId buffer) const { return slot(buffer).written; }
    void touch(BufferId buffer) { slot(buffer).written = ++m_clock; }

private:
    struct Slot {
        bool live = false;
        std::int64_t written = 0;
        MemoryCache::Block memory;
        int file = -1;
    };

    Slot& slot(BufferId buffer) { return m_slots[static_cast<std::size_t>(buffer)]; }
    const Slot& slot(BufferId buffer) const { return m_slots[static_cast<std::size_t>(buffer)]; }
    [[noreturn]] void fail(BufferId buffer, const char* what) const;

    const Schedule& m_schedule;
    const Shapes& m_shapes;
    Arena& m_arena;
    NvmeFiles* m_files;
    MemoryCache m_cache; // outlives the slots
    std::vector<Slot> m_slots;
    std::vector<BufferShape> m_now; // by BufferId; differs from m_shapes where something else is held by now
    std::int64_t m_clock = 0;
};

} // namespace shardwright
