#include "planner/readers/caching_allocator.hpp"

#include <algorithm>
#include <map>
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
    explicit Allocator(std::int64_t limit) : m_limit(limit) {}

    /// The handle of a block for `bytes`, or -1 when the device is full.
    int allocate(std::int64_t bytes, int stream)
    {
        const std::int64_t size = bytes < kMinBlockSize ? kMinBlockSize : roundUp(bytes, kMinBlockSize);
        const bool small = size <= kSmallSize;
        const int pool = stream * 2 + (small ? 1 : 0);
        std::set<FreeKey>& free = m_free[pool];
        auto found = free.lower_bound({size, 0, 0});
        if (found == free.end()) {
            const std::int64_t segmentSize = small                   ? kSmallBuffer
                                             : size < kMinLargeAlloc ? kLargeBuffer
                                                                     : roundUp(size, kRoundLarge);
            if (m_reserved + segmentSize > m_limit) {
                giveBackCached();
                ++m_flushes;
                if (m_reserved + segmentSize > m_limit)
                    return -1;
            }
            m_reserved += segmentSize;
            m_peak = std::max(m_peak, m_reserved);
            const std::int64_t segment = static_cast<std::int64_t>(m_segments.size());
            m_segments.push_back({segmentSize, pool, {}});
            m_segments.back().blocks[0] = {segmentSize, false};
            found = free.insert({segmentSize, segment, 0}).first;
        }
        const auto [blockSize, segment, offset] = *found;
        free.erase(found);
        Segment& home = m_segments[static_cast<std::size_t>(segment)];
        std::int64_t taken = blockSize;
        const std::int64_t rest = blockSize - size;
        if (small ? rest >= kMinBlockSize : rest > kSmallSize) {
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
    std::int64_t m_reserved = 0;
    std::int64_t m_peak = 0;
    std::int64_t m_flushes = 0;
    std::map<int, std::set<FreeKey>> m_free; // by pool
    std::vector<Segment> m_segments;
    std::vector<std::pair<std::int64_t, std::int64_t>> m_handles; // handle -> segment, offset
};

class Replay {
public:
    Replay(const Schedule& schedule, Bytes limit)
        : m_schedule(schedule), m_allocator(limit.count()), m_handles(schedule.buffers.size(), -1)
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
        const int handle = m_allocator.allocate(bufferClass.bytes.count(), static_cast<int>(bufferClass.spec->pool));
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
                case BufferChange::FreeDeferred: break; // still in use on another stream
                case BufferChange::Reclaim: release(event.buffer); break;
                }
            }
        return true;
    }

    const Schedule& m_schedule;
    Allocator m_allocator;
    std::vector<int> m_handles;
    std::map<BufferId, bool> m_gone; // carried-over buffers that the first step freed
    std::vector<int> m_carried;      // handles of what the first step left alive
    AllocatorReplay m_result;
};

} // namespace

AllocatorReplay replayAllocator(const Schedule& schedule, Bytes limit)
{
    return Replay(schedule, limit).run();
}

} // namespace shardwright
