#include "planner/readers/caching_allocator.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

namespace shardwright {

namespace {

// Constants of c10/cuda/CUDACachingAllocator.cpp (PyTorch 2.x).
constexpr std::int64_t kMinBlockSize = 512;       // all sizes are rounded to this
constexpr std::int64_t kSmallSize = 1048576;      // largest "small" allocation
constexpr std::int64_t kSmallBuffer = 2097152;    // "small" allocations are packed in 2 MiB segments
constexpr std::int64_t kLargeBuffer = 20971520;   // allocations of 1 to 10 MiB are packed in 20 MiB segments
constexpr std::int64_t kMinLargeAlloc = 10485760; // from here on segments of their own
constexpr std::int64_t kRoundLarge = 2097152;     // rounded to this

/// Free blocks of one pool, ordered as the allocator orders them: by size, then by address.
using FreeKey = std::tuple<std::int64_t, std::int64_t, std::int64_t>; // size, segment, offset

class Allocator {
public:
    Allocator(std::int64_t limit, const AllocatorOptions& options) : m_limit(limit), m_options(options) {}

    /// The handle of a block for `bytes`, or -1 when the device is full.
    int allocate(std::int64_t bytes, int stream)
    {
        const std::int64_t size = bytes < kMinBlockSize ? kMinBlockSize : roundUp(bytes, kMinBlockSize);
        const bool small = size <= kSmallSize;
        const int pool = stream * 2 + (small ? 1 : 0);
        std::set<FreeKey>& free = m_free[pool];
        auto found = free.lower_bound({size, 0, 0});
        if (m_options.expandableSegments)
            found = avoidTail(free, found);
        if (found == free.end()) {
            const auto added = m_options.expandableSegments ? grow(pool, size) : addSegment(pool, size);
            if (!added)
                return -1;
            found = free.insert(*added).first;
        }
        const auto [blockSize, segment, offset] = *found;
        free.erase(found);
        Segment& home = m_segments[static_cast<std::size_t>(segment)];
        std::int64_t taken = blockSize;
        const std::int64_t rest = blockSize - size;
        if (small || m_options.expandableSegments ? rest >= kMinBlockSize : rest > kSmallSize) {
            taken = size;
            home.blocks[offset + size] = {rest, false};
            free.insert({rest, segment, offset + size});
        }
        home.blocks[offset] = {taken, true};
        m_handles.push_back({segment, offset});
        return static_cast<int>(m_handles.size()) - 1;
    }

    void release(int handle)
    {
        const auto [segment, offset] = m_handles[static_cast<std::size_t>(handle)];
        Segment& home = m_segments[static_cast<std::size_t>(segment)];
        std::set<FreeKey>& free = m_free[home.pool];
        auto block = home.blocks.find(offset);
        block->second.live = false;
        const auto next = std::next(block);
        if (next != home.blocks.end() && !next->second.live) {
            free.erase({next->second.size, segment, next->first});
            block->second.size += next->second.size;
            home.blocks.erase(next);
        }
        if (block != home.blocks.begin()) {
            const auto previous = std::prev(block);
            if (!previous->second.live) {
                free.erase({previous->second.size, segment, previous->first});
                previous->second.size += block->second.size;
                home.blocks.erase(block);
                block = previous;
            }
        }
        free.insert({block->second.size, segment, block->first});
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
    struct Part {
        std::int64_t size;
        bool live;
    };
    struct Segment {
        std::int64_t size;
        int pool;
        std::map<std::int64_t, Part> blocks; // by offset
    };

    static bool isSmall(int pool) { return pool % 2 == 1; }

    bool hasRoom(std::int64_t bytes) const { return bytes <= m_limit - m_reserved; }

    void take(std::int64_t bytes)
    {
        m_reserved += bytes;
        m_peak = std::max(m_peak, m_reserved);
    }

    std::optional<FreeKey> addSegment(int pool, std::int64_t size)
    {
        const std::int64_t segmentSize = isSmall(pool)           ? kSmallBuffer
                                         : size < kMinLargeAlloc ? kLargeBuffer
                                                                 : roundUp(size, kRoundLarge);
        if (!hasRoom(segmentSize))
            return std::nullopt;
        take(segmentSize);
        const std::int64_t segment = static_cast<std::int64_t>(m_segments.size());
        m_segments.push_back({segmentSize, pool, {}});
        m_segments.back().blocks[0] = {segmentSize, false};
        return FreeKey{segmentSize, segment, 0};
    }

    /// Best fit counts what a block could grow to, so the free block at the growing end is taken last (get_free_block).
    std::set<FreeKey>::iterator avoidTail(const std::set<FreeKey>& free, std::set<FreeKey>::iterator found) const
    {
        if (found == free.end())
            return found;
        const auto [size, segment, offset] = *found;
        const auto next = std::next(found);
        return offset + size == m_segments[static_cast<std::size_t>(segment)].size && next != free.end() ? next : found;
    }

    /// Maps pages at the end of the pool's segment until the free block there holds `size`
    /// (try_allocate_expandable_block).
    std::optional<FreeKey> grow(int pool, std::int64_t size)
    {
        const std::int64_t page = isSmall(pool) ? kSmallBuffer : kLargeBuffer;
        const auto tail = [&](std::int64_t segment) -> std::optional<FreeKey> {
            const Segment& home = m_segments[static_cast<std::size_t>(segment)];
            if (home.blocks.empty() || home.blocks.rbegin()->second.live)
                return std::nullopt;
            return FreeKey{home.blocks.rbegin()->second.size, segment, home.blocks.rbegin()->first};
        };
        if (m_expandable.count(pool) == 0) {
            m_expandable[pool] = static_cast<std::int64_t>(m_segments.size());
            m_segments.push_back({0, pool, {}});
        }
        const std::int64_t segment = m_expandable[pool];
        const auto last = tail(segment);
        const std::int64_t added = roundUp(size - (last ? std::get<0>(*last) : 0), page);
        if (!hasRoom(added))
            return std::nullopt;
        take(added);
        Segment& home = m_segments[static_cast<std::size_t>(segment)];
        std::int64_t offset = home.size;
        std::int64_t blockSize = added;
        if (last) {
            m_free[pool].erase(*last);
            offset = std::get<2>(*last);
            blockSize += std::get<0>(*last);
        }
        home.size += added;
        home.blocks[offset] = {blockSize, false};
        return FreeKey{blockSize, segment, offset};
    }

    /// Unmaps every page that lies within a free block. Its addresses stay behind as a block that is never freed.
    void giveBackPages()
    {
        for (const auto& [pool, segment] : m_expandable) {
            const std::int64_t page = isSmall(pool) ? kSmallBuffer : kLargeBuffer;
            std::set<FreeKey>& free = m_free[pool];
            std::map<std::int64_t, Part>& blocks = m_segments[static_cast<std::size_t>(segment)].blocks;
            const std::set<FreeKey> before = free;
            for (const auto& [size, home, offset] : before) {
                const std::int64_t begin = roundUp(offset, page);
                const std::int64_t end = (offset + size) / page * page;
                if (end <= begin)
                    continue;
                free.erase({size, home, offset});
                blocks.erase(offset);
                const auto keep = [&, segmentOf = home](std::int64_t from, std::int64_t to) {
                    if (to <= from)
                        return;
                    blocks[from] = {to - from, false};
                    free.insert({to - from, segmentOf, from});
                };
                keep(offset, begin);
                blocks[begin] = {end - begin, true};
                keep(end, offset + size);
                m_reserved -= end - begin;
            }
        }
    }

    /// cudaFree of every segment that is one free block (release_cached_blocks).
    void giveBackCached()
    {
        for (std::size_t i = 0; i < m_segments.size(); ++i) {
            Segment& segment = m_segments[i];
            if (segment.size == 0 || segment.blocks.size() != 1 || segment.blocks.begin()->second.live)
                continue;
            m_free[segment.pool].erase({segment.size, static_cast<std::int64_t>(i), 0});
            m_reserved -= segment.size;
            segment.size = 0;
            segment.blocks.clear();
        }
    }

    std::int64_t m_limit;
    AllocatorOptions m_options;
    std::map<int, std::int64_t> m_expandable; // by pool: its one growing segment
    std::int64_t m_reserved = 0;
    std::int64_t m_peak = 0;
    std::int64_t m_flushes = 0;
    std::map<int, std::set<FreeKey>> m_free; // by pool
    std::vector<Segment> m_segments;
    std::vector<std::pair<std::int64_t, std::int64_t>> m_handles; // handle -> segment, offset
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
