#include "executor/comm/threads/thread_communicator.hpp"

#include <cstring>
#include <stdexcept>
#include <thread>

#include <fmt/format.h>

#include "executor/comm/ring_collectives.hpp"
#include "executor/comm/ring_communicator.hpp"
#include "executor/comm/sums.hpp"
#include "executor/comm/threads/who_is_late.hpp"

namespace shardwright {

namespace {

std::byte* bytesAt(void* data)
{
    return static_cast<std::byte*>(data);
}

const std::byte* bytesAt(const void* data)
{
    return static_cast<const std::byte*>(data);
}

void copyBytes(std::byte* to, const std::byte* from, std::int64_t bytes)
{
    if (bytes > 0 && to != from)
        std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

} // namespace

ThreadCommunicator::ThreadCommunicator(std::shared_ptr<Hub> hub, std::shared_ptr<SharedGroup> group, int place,
                                       const ThreadTransportOptions& options)
    : m_hub(std::move(hub)), m_group(std::move(group)), m_links(*m_hub, *m_group, place), m_options(options)
{
}

void ThreadCommunicator::begin(const Call& call)
{
    m_lastSent = 0;
    Member& own = member(rank());
    own.call = call;
    own.calls.fetch_add(1);
    if (m_hub->aborted())
        m_hub->throwCause();
}

bool ThreadCommunicator::takesRing(std::int64_t payloadBytes) const
{
    switch (m_options.algorithm) {
    case CollectiveAlgorithm::Direct: return false;
    case CollectiveAlgorithm::Ring: return true;
    case CollectiveAlgorithm::BySize: break;
    }
    return payloadBytes >= m_options.ringFrom.count();
}

void ThreadCommunicator::arrive()
{
    const std::int64_t all = ++m_barriers * size();
    if (m_group->arrivals.fetch_add(1) + 1 == all) {
        for (Member& each : m_group->members)
            each.bell.ring();
        return;
    }
    m_hub->wait(
        m_group->ranks[static_cast<std::size_t>(rank())], member(rank()).bell,
        [&] { return m_group->arrivals.load() >= all; }, [&] { return whoIsLate(*m_hub, *m_group, rank()); });
}

void ThreadCommunicator::checkCalls()
{
    const Call& own = member(rank()).call;
    for (int other = 0; other < size(); ++other) {
        const Call& call = member(other).call;
        if (call == own)
            continue;
        const auto globalRank = [&](int place) { return m_group->ranks[static_cast<std::size_t>(place)]; };
        m_hub->abort(fmt::format("group {}: rank {} calls {} of {} bytes, rank {} {} of {} bytes", m_group->name,
                                 globalRank(rank()), own.name, own.bytes, globalRank(other), call.name, call.bytes));
        m_hub->throwCause();
    }
}

/// Runs `read`, in which the others' shown memory may be read, and lets no rank go on before all have read.
template <typename Read> void ThreadCommunicator::betweenBarriers(const std::byte* shown, const Read& read)
{
    Member& own = member(rank());
    own.shown = shown;
    try {
        arrive();
        // A rank that leaves because of an abort waits until nobody reads; whoever starts to read looks for an abort
        // afterwards. One of the two sees the other (both sequentially consistent).
        own.reading.store(true);
        if (m_hub->aborted())
            m_hub->throwCause();
        checkCalls();
        read();
        own.reading.store(false);
        arrive();
    } catch (...) {
        own.reading.store(false);
        m_hub->abort(fmt::format("rank {} failed in {}", m_group->ranks[static_cast<std::size_t>(rank())],
                                 own.call.name)); // whatever failed: nobody may begin to read its memory
        for (const Member& each : m_group->members)
            while (each.reading.load())
                std::this_thread::yield();
        throw;
    }
}

std::vector<const std::byte*> ThreadCommunicator::shownAt(std::int64_t offset)
{
    std::vector<const std::byte*> sources;
    for (const Member& each : m_group->members)
        sources.push_back(each.shown + offset);
    return sources;
}

void ThreadCommunicator::allGather(const void* part, void* all, std::int64_t bytes)
{
    begin({"all-gather", bytes});
    std::byte* whole = bytesAt(all);
    if (bytes == 0)
        return;
    const auto copyOwn = [&] { copyBytes(whole + rank() * bytes, bytesAt(part), bytes); };
    if (size() == 1)
        return copyOwn();
    if (takesRing(bytes * size())) {
        copyOwn();
        const std::int64_t before = m_links.sentBytes();
        ringAllGather(m_links, whole, bytes);
        m_lastSent = m_links.sentBytes() - before;
        return;
    }
    betweenBarriers(bytesAt(part), [&] {
        copyOwn();
        for (int step = 1; step < size(); ++step) {
            const int other = (rank() + step) % size();
            copyBytes(whole + other * bytes, member(other).shown, bytes);
        }
    });
    m_lastSent = bytes * (size() - 1);
}

void ThreadCommunicator::reduceScatter(void* all, void* part, std::int64_t elements, DType dtype)
{
    const std::int64_t bytes = bytesOfSum(elements, dtype);
    begin({"reduce-scatter", bytes, dtype});
    std::byte* whole = bytesAt(all);
    if (bytes == 0)
        return;
    if (size() == 1)
        return copyBytes(bytesAt(part), whole, bytes);
    if (takesRing(bytes * size())) {
        const std::int64_t before = m_links.sentBytes();
        ringReduceScatter(m_links, whole, elements, dtype);
        m_lastSent = m_links.sentBytes() - before;
        return copyBytes(bytesAt(part), whole + rank() * bytes, bytes);
    }
    betweenBarriers(whole, [&] { sumElements(bytesAt(part), shownAt(rank() * bytes), elements, dtype); });
    m_lastSent = bytes * (size() - 1);
}

void ThreadCommunicator::allReduce(void* data, std::int64_t elements, DType dtype)
{
    const std::int64_t bytes = bytesOfSum(elements, dtype);
    begin({"all-reduce", bytes, dtype});
    std::byte* whole = bytesAt(data);
    if (bytes == 0 || size() == 1)
        return;
    if (takesRing(bytes)) {
        const std::int64_t before = m_links.sentBytes();
        ringAllReduce(m_links, whole, elements, dtype);
        m_lastSent = m_links.sentBytes() - before;
        return;
    }
    const std::int64_t elementBytes = bitsOf(dtype) / 8;
    const PieceRange own = pieceOf(elements, size(), rank());
    // Piece r of a rank's data is read by rank r alone until rank r has replaced its own with the sum.
    betweenBarriers(whole, [&] {
        const std::int64_t offset = own.first * elementBytes;
        sumElements(whole + offset, shownAt(offset), own.count, dtype);
    });
    betweenBarriers(whole, [&] {
        for (int step = 1; step < size(); ++step) {
            const int other = (rank() + step) % size();
            const PieceRange piece = pieceOf(elements, size(), other);
            copyBytes(whole + piece.first * elementBytes, member(other).shown + piece.first * elementBytes,
                      piece.count * elementBytes);
        }
    });
    m_lastSent = (elements - own.count + own.count * (size() - 1)) * elementBytes;
}

void ThreadCommunicator::reduce(void* data, std::int64_t elements, DType dtype, int root)
{
    const std::int64_t bytes = bytesOfSum(elements, dtype);
    begin({"reduce", bytes, dtype, root});
    if (bytes == 0 || size() == 1)
        return;
    if (takesRing(bytes)) {
        const std::int64_t before = m_links.sentBytes();
        chainReduce(m_links, bytesAt(data), elements, dtype, root);
        m_lastSent = m_links.sentBytes() - before;
        return;
    }
    betweenBarriers(bytesAt(data), [&] {
        if (rank() == root)
            sumElements(bytesAt(data), shownAt(0), elements, dtype);
    });
    m_lastSent = rank() == root ? 0 : bytes;
}

void ThreadCommunicator::broadcast(void* data, std::int64_t bytes, int root)
{
    begin({"broadcast", bytes, DType::Int8, root});
    if (bytes == 0 || size() == 1)
        return;
    if (takesRing(bytes)) {
        const std::int64_t before = m_links.sentBytes();
        chainBroadcast(m_links, bytesAt(data), bytes, root);
        m_lastSent = m_links.sentBytes() - before;
        return;
    }
    betweenBarriers(bytesAt(data), [&] { copyBytes(bytesAt(data), member(root).shown, bytes); });
    m_lastSent = rank() == root ? bytes * (size() - 1) : 0;
}

void ThreadCommunicator::allToAll(const void* from, void* to, std::int64_t bytesEach)
{
    begin({"all-to-all", bytesEach});
    if (bytesEach == 0)
        return;
    if (takesRing(bytesEach * size())) {
        const std::int64_t before = m_links.sentBytes();
        pairwiseAllToAll(m_links, bytesAt(from), bytesAt(to), bytesEach);
        m_lastSent = m_links.sentBytes() - before;
        return;
    }
    betweenBarriers(bytesAt(from), [&] {
        for (int step = 0; step < size(); ++step) {
            const int other = (rank() + step) % size();
            copyBytes(bytesAt(to) + other * bytesEach, member(other).shown + rank() * bytesEach, bytesEach);
        }
    });
    m_lastSent = bytesEach * (size() - 1);
}

void ThreadCommunicator::barrier()
{
    begin({"barrier"});
    arrive();
}

double ThreadCommunicator::sum(double value)
{
    begin({"sum"});
    m_group->scalars[static_cast<std::size_t>(rank())] = value;
    double total = 0;
    betweenBarriers(nullptr, [&] {
        for (const double each : m_group->scalars)
            total += each;
    });
    return total;
}

} // namespace shardwright
