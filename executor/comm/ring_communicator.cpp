#include "executor/comm/ring_communicator.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

#include "executor/comm/ring_collectives.hpp"
#include "executor/elements.hpp"

namespace shardwright {

namespace {

void copyBytes(void* to, const void* from, std::int64_t bytes)
{
    if (bytes > 0 && to != from)
        std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

} // namespace

std::int64_t bytesOfSum(std::int64_t elements, DType dtype)
{
    if (!isFloating(dtype))
        throw std::invalid_argument("collectives cannot sum elements of type " + std::string(nameOf(dtype)));
    return bytesOf(elements, dtype).count();
}

void checkGroup(const Group& group, int rank, int ranks)
{
    const std::int64_t last = group.firstRank(rank) + (group.ranks - 1) * group.stride;
    if (last >= ranks)
        throw std::invalid_argument(
            fmt::format("group {} reaches rank {}, but there are {} ranks", group.name, last, ranks));
}

void RingCommunicator::count(const char* call, const std::function<void()>& collective)
{
    begin(call);
    const std::int64_t before = m_links->sentBytes();
    m_lastSent = 0;
    collective();
    m_lastSent = m_links->sentBytes() - before;
}

void RingCommunicator::allGather(const void* part, void* all, std::int64_t bytes)
{
    count("all-gather", [&] {
        auto* whole = static_cast<std::byte*>(all);
        copyBytes(whole + rank() * bytes, part, bytes);
        ringAllGather(*m_links, whole, bytes);
    });
}

void RingCommunicator::reduceScatter(void* all, void* part, std::int64_t elements, DType dtype)
{
    const std::int64_t bytes = bytesOfSum(elements, dtype);
    count("reduce-scatter", [&] {
        auto* whole = static_cast<std::byte*>(all);
        ringReduceScatter(*m_links, whole, elements, dtype);
        copyBytes(part, whole + rank() * bytes, bytes);
    });
}

void RingCommunicator::allReduce(void* data, std::int64_t elements, DType dtype)
{
    bytesOfSum(elements, dtype);
    count("all-reduce", [&] { ringAllReduce(*m_links, static_cast<std::byte*>(data), elements, dtype); });
}

void RingCommunicator::reduce(void* data, std::int64_t elements, DType dtype, int root)
{
    bytesOfSum(elements, dtype);
    count("reduce", [&] { chainReduce(*m_links, static_cast<std::byte*>(data), elements, dtype, root); });
}

void RingCommunicator::broadcast(void* data, std::int64_t bytes, int root)
{
    count("broadcast", [&] { chainBroadcast(*m_links, static_cast<std::byte*>(data), bytes, root); });
}

void RingCommunicator::allToAll(const void* from, void* to, std::int64_t bytesEach)
{
    count("all-to-all", [&] {
        pairwiseAllToAll(*m_links, static_cast<const std::byte*>(from), static_cast<std::byte*>(to), bytesEach);
    });
}

void RingCommunicator::barrier()
{
    count("barrier", [&] { disseminationBarrier(*m_links); });
    m_lastSent = 0; // its signs carry nothing
}

} // namespace shardwright
