#include "planner/readers/caching_allocator.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <vector>

#include "planner/readers/free_blocks.hpp"

namespace shardwright {

namespace {

// Constants of c10/cuda/CUDACachingAllocator.cpp (PyTorch 2.x).
constexpr std::int64_t kMinBlockSize = 512;       // all sizes are rounded to this
constexpr std::int64_t kSmallSize = 1048576;      // largest "small" allocation
constexpr std::int64_t kSmallBuffer = 2097152;    // "small" allocations are packed in 2 MiB segments
constexpr std::int64_t kLargeBuffer = 20971520;   // allocations of 1 to 10 MiB are packed in 20 MiB segments
constexpr std::int64_t kMinLargeAlloc = 10485760; // from here on segments of their own
constexpr std::int64_t kRoundLarge = 2097152;     // rounded to this

class Allocator {
public:
    Allocator(std::int64_t limit, const AllocatorOptions& options) : m_limit(limit), m_options(options) {}

    /// The handle of a block for `bytes`, or -1 when the device is full.
    int allocate(std::int64_t bytes, int stream)
    {
        const std::int64_t size = bytes < kMinBlockSize ? kMinBlockSize : roundUp(bytes, kMinBlockSize);
        const bool small = size <= kSmallSize;
        const int pool = stream * 2 + (small ? 1 : 0);
        FreeBlocks& free = m_free[static_cast<std::size_t>(pool)];
        auto found = free.first(size);
        if (found && m_options.expandableSegments)
            found = avoidTail(free, *found);
        int taken = -1;
        if (found) {
            taken = free.block(*found);
            free.erase(*found);
        } else {
            taken = m_options.expandableSegments ? grow(pool, size) : addSegment(pool, size);
            if (taken < 0)
                return -1;
        }
        const std::int64_t rest = blockAt(taken).size - size;
        if (small || m_options.expandableSegments ? rest >= kMinBlockSize : rest > kSmallSize) {
            const int second = split(taken, size);
            free.insert(blockAt(second), second);
        }
        blockAt(taken).live = true;
        return taken;
    }

    void release(int handle)
    {
        blockAt(handle).live = false;
        FreeBlocks& free = m_free[static_cast<std::size_t>(segmentOf(handle).pool)];
        const int after = blockAt(handle).after;
        if (after >= 0 && !blockAt(after).live) {
            free.erase(blockAt(after));
            join(handle, after);
        }
        const int before = blockAt(handle).before;
        if (before >= 0 && !blockAt(before).live) {
            free.erase(blockAt(before));
            join(before, handle);
            free.insert(blockAt(before), before);
            return;
        }
        free.insert(blockAt(handle), handle);
    }

    /// Gives what is cached back to the driver.
    void giveBack()
    {
        if (m_options.expandableSegments)
            giveBackPages();
        else
            giveBackCached();
        ++m_flushes;
    }

    std::int64_t reserved() const { return m_reserved; }
    std::int64_t peak() const { return m_peak; }
    void forgetPeak() { m_peak = m_reserved; }
    std::int64_t flushes() const { return m_flushes; }

private:
    struct Segment {
        std::int64_t size;
        int pool;
        int first = -1; // blocks
        int last = -1;
    };

    static bool isSmall(int pool) { return pool % 2 == 1; }

    Block& blockAt(int index) { return m_blocks[static_cast<std::size_t>(index)]; }
    Segment& segmentOf(int block) { return m_segments[static_cast<std::size_t>(blockAt(block).segment)]; }

    int newBlock(const Block& block)
    {
        if (m_unused.empty()) {
            m_blocks.push_back(block);
            return static_cast<int>(m_blocks.size()) - 1;
        }
        const int index = m_unused.back();
        m_unused.pop_back();
        blockAt(index) = block;
        return index;
    }

    /// Cuts a block after `size` bytes. The second part, which is not live.
    int split(int block, std::int64_t size)
    {
        const Block whole = blockAt(block);
        const int second = newBlock({whole.size - size, whole.offset + size, whole.segment, block, whole.after, false});
        (whole.after >= 0 ? blockAt(whole.after).before : segmentOf(block).last) = second;
        blockAt(block).after = second;
        blockAt(block).size = size;
        return second;
    }

    /// Makes one block of two neighbours; the second ceases to be.
    void join(int first, int second)
    {
        const Block gone = blockAt(second);
        blockAt(first).size += gone.size;
        blockAt(first).after = gone.after;
        (gone.after >= 0 ? blockAt(gone.after).before : segmentOf(first).last) = first;
        m_unused.push_back(second);
    }

    int addBlockAtEnd(int segment, std::int64_t offset, std::int64_t size)
    {
        Segment& home = m_segments[static_cast<std::size_t>(segment)];
        const int block = newBlock({size, offset, segment, home.last, -1, false});
        (home.last >= 0 ? blockAt(home.last).after : home.first) = block;
        home.last = block;
        return block;
    }

    bool hasRoom(std::int64_t bytes) const { return bytes <= m_limit - m_reserved; }

    void take(std::int64_t bytes)
    {
        m_reserved += bytes;
        m_peak = std::max(m_peak, m_reserved);
    }

    /// A new segment's one block, not among the free ones; -1 where there is no room.
    int addSegment(int pool, std::int64_t size)
    {
        const std::int64_t segmentSize = isSmall(pool)           ? kSmallBuffer
                                         : size < kMinLargeAlloc ? kLargeBuffer
                                                                 : roundUp(size, kRoundLarge);
        if (!hasRoom(segmentSize))
            return -1;
        take(segmentSize);
        m_segments.push_back({segmentSize, pool});
        return addBlockAtEnd(static_cast<int>(m_segments.size()) - 1, 0, segmentSize);
    }

    /// Best fit counts what a block could grow to, so the free block at the growing end is taken last (get_free_block).
    FreeBlocks::Place avoidTail(const FreeBlocks& free, const FreeBlocks::Place& found)
    {
        const int block = free.block(found);
        if (segmentOf(block).last != block)
            return found;
        return free.next(found).value_or(found);
    }

    /// Maps pages at the end of the pool's segment until the free block there holds `size`
    /// (try_allocate_expandable_block). That block, not among the free ones; -1 where there is no room.
    int grow(int pool, std::int64_t size)
    {
        const std::int64_t page = isSmall(pool) ? kSmallBuffer : kLargeBuffer;
        const auto [known, isNew] = m_expandable.try_emplace(pool, static_cast<int>(m_segments.size()));
        if (isNew)
            m_segments.push_back({0, pool});
        const int segment = known->second;
        Segment& home = m_segments[static_cast<std::size_t>(segment)];
        const bool growsBlock = home.last >= 0 && !blockAt(home.last).live;
        const std::int64_t added = roundUp(size - (growsBlock ? blockAt(home.last).size : 0), page);
        if (!hasRoom(added))
            return -1;
        take(added);
        const std::int64_t end = home.size;
        home.size += added;
        if (!growsBlock)
            return addBlockAtEnd(segment, end, added);
        m_free[static_cast<std::size_t>(pool)].erase(blockAt(home.last));
        blockAt(home.last).size += added;
        return home.last;
    }

    /// Unmaps every page that lies within a free block. Its addresses stay behind as a block that is never freed.
    void giveBackPages()
    {
        for (const auto& [pool, segment] : m_expandable) {
            const std::int64_t page = isSmall(pool) ? kSmallBuffer : kLargeBuffer;
            FreeBlocks& free = m_free[static_cast<std::size_t>(pool)];
            for (int block : free.all()) {
                const Block whole = blockAt(block);
                const std::int64_t begin = roundUp(whole.offset, page);
                const std::int64_t end = (whole.offset + whole.size) / page * page;
                if (end <= begin)
                    continue;
                free.erase(whole);
                if (end < whole.offset + whole.size) {
                    const int behind = split(block, end - whole.offset);
                    free.insert(blockAt(behind), behind);
                }
                if (begin > whole.offset) {
                    const int pages = split(block, begin - whole.offset);
                    free.insert(blockAt(block), block);
                    block = pages;
                }
                blockAt(block).live = true;
                m_reserved -= end - begin;
            }
        }
    }

    /// cudaFree of every segment that is one free block (release_cached_blocks).
    void giveBackCached()
    {
        for (Segment& segment : m_segments) {
            if (segment.size == 0 || segment.first != segment.last || blockAt(segment.first).live)
                continue;
            m_free[static_cast<std::size_t>(segment.pool)].erase(blockAt(segment.first));
            m_unused.push_back(segment.first);
            m_reserved -= segment.size;
            segment = {0, segment.pool};
        }
    }

    std::int64_t m_limit;
    AllocatorOptions m_options;
    std::map<int, int> m_expandable; // by pool: its one growing segment
    std::int64_t m_reserved = 0;
    std::int64_t m_peak = 0;
    std::int64_t m_flushes = 0;
    std::array<FreeBlocks, 2 * kStreamCount> m_free; // by pool
    std::vector<Segment> m_segments;
    std::vector<Block> m_blocks;
    std::vector<int> m_unused; // blocks that are none any more
};

class Replay {
public:
    Replay(const Schedule& schedule, Bytes limit, const AllocatorOptions& options)
        : m_schedule(schedule), m_allocator(limit.count(), options), m_handles(schedule.buffers.size(), -1)
    {
    }

    AllocatorReplay run()
    {
        // Lazily made states come at the end of the first step, after its activations have shaped the pools.
        for (const Segment& segment : m_schedule.segments)
            if (!play(segment, segment.firstOp == 0))
                return result();
        carryOver();
        makeLazyStates();
        m_allocator.forgetPeak();
        for (const Segment& segment : m_schedule.segments)
            if (segment.firstOp != 0 && !play(segment, false))
                break;
        return result();
    }

private:
    AllocatorReplay result()
    {
        m_result.peakReserved = Bytes(m_allocator.peak());
        m_result.reservedAtEnd = Bytes(m_allocator.reserved());
        m_result.flushes = m_allocator.flushes();
        return m_result;
    }

    bool lazy(BufferId buffer) const { return classOf(buffer).spec->lifetime == Lifetime::FromFirstStep; }
    const BufferClass& classOf(BufferId buffer) const
    {
        return m_schedule.sizes.buffers[static_cast<std::size_t>(m_schedule.buffers[static_cast<std::size_t>(buffer)])];
    }

    /// What the first step left alive dies in the second where the schedule frees its stand-in from initialisation.
    void carryOver()
    {
        for (std::size_t buffer = 0; buffer < m_handles.size(); ++buffer) {
            const bool transient = classOf(static_cast<BufferId>(buffer)).spec->lifetime == Lifetime::Transient;
            if (!transient || m_handles[buffer] < 0)
                continue;
            m_carried.push_back(m_handles[buffer]);
            m_handles[buffer] = -1;
        }
    }

    void makeLazyStates()
    {
        const Segment& init = m_schedule.segments.front();
        for (std::uint32_t op = init.firstOp; op < init.endOp; ++op)
            for (std::uint32_t i = 0; i < m_schedule.ops[op].eventCount; ++i) {
                const BufferEvent& event = m_schedule.events[m_schedule.ops[op].firstEvent + i];
                if (event.change == BufferChange::Allocate && lazy(event.buffer) && !m_gone[event.buffer])
                    allocate(event.buffer, static_cast<OpId>(op));
            }
    }

    bool allocate(BufferId buffer, OpId op)
    {
        const BufferClass& bufferClass = classOf(buffer);
        if (bufferClass.spec->place != Place::Gpu || bufferClass.bytes == Bytes(0))
            return true;
        const auto pool = static_cast<int>(bufferClass.spec->pool);
        int handle = m_allocator.allocate(bufferClass.bytes.count(), pool);
        if (handle < 0) {
            // The device is waited for before cached memory is given back: no stream uses anything any more.
            for (const BufferId deferred : m_deferred)
                release(deferred);
            m_deferred.clear();
            m_allocator.giveBack();
            handle = m_allocator.allocate(bufferClass.bytes.count(), pool);
        }
        if (handle < 0) {
            m_result.outOfMemory = true;
            m_result.failedOp = op;
            return false;
        }
        m_handles[static_cast<std::size_t>(buffer)] = handle;
        return true;
    }

    void release(BufferId buffer)
    {
        int& handle = m_handles[static_cast<std::size_t>(buffer)];
        if (handle >= 0)
            m_allocator.release(handle);
        handle = -1;
    }

    bool play(const Segment& segment, bool init)
    {
        for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op)
            for (std::uint32_t i = 0; i < m_schedule.ops[op].eventCount; ++i) {
                const BufferEvent& event = m_schedule.events[m_schedule.ops[op].firstEvent + i];
                switch (event.change) {
                case BufferChange::Allocate:
                    if (init && lazy(event.buffer))
                        break;
                    if (!allocate(event.buffer, static_cast<OpId>(op)))
                        return false;
                    break;
                case BufferChange::Free:
                    if (lazy(event.buffer)) {
                        m_gone[event.buffer] = true;
                        for (const int handle : m_carried)
                            m_allocator.release(handle);
                        m_carried.clear();
                    }
                    release(event.buffer);
                    break;
                case BufferChange::FreeDeferred: // still in use on another stream
                    m_deferred.insert(event.buffer);
                    break;
                case BufferChange::Reclaim:
                    m_deferred.erase(event.buffer);
                    release(event.buffer);
                    break;
                }
            }
        return true;
    }

    const Schedule& m_schedule;
    Allocator m_allocator;
    std::vector<int> m_handles;
    std::map<BufferId, bool> m_gone; // carried-over buffers that the first step freed
    std::set<BufferId> m_deferred;   // let go of, not reclaimed yet
    std::vector<int> m_carried;      // handles of what the first step left alive
    AllocatorReplay m_result;
};

} // namespace

AllocatorReplay replayAllocator(const Schedule& schedule, Bytes limit, const AllocatorOptions& options)
{
    return Replay(schedule, limit, options).run();
}

} // namespace shardwright
