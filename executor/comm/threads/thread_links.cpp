#include "executor/comm/threads/thread_links.hpp"

#include <cstring>
#include <thread>

#include <fmt/format.h>

#include "executor/comm/threads/who_is_late.hpp"
#include "executor/elements.hpp"

namespace shardwright {

void ThreadLinks::carry(const Outgoing& out, const Incoming& in)
{
    if (m_hub.aborted())
        m_hub.throwCause();
    if (out.bytes > 0)
        post(out);
    try {
        if (in.bytes > 0)
            take(in);
        if (out.bytes > 0)
            awaitTaken(out);
    } catch (...) {
        withdraw();
        throw;
    }
}

void ThreadLinks::post(const Outgoing& out)
{
    Member& own = member(m_rank);
    own.data = out.data;
    own.bytes = out.bytes;
    own.post.store(out.to);
    member(out.to).bell.ring();
}

void ThreadLinks::take(const Incoming& in)
{
    Member& sender = member(in.from);
    m_hub.wait(
        globalRank(), member(m_rank).bell, [&] { return sender.post.load() == m_rank; }, [&] { return late(in.from); });
    int posted = m_rank;
    if (!sender.post.compare_exchange_strong(posted, Member::kTaking)) // the sender withdrew it: it was aborted
        m_hub.throwCause();
    const bool fits = sender.bytes == in.bytes;
    if (fits && in.added)
        addElements(sender.data, *in.added, in.into, *in.added, in.bytes / (bitsOf(*in.added) / 8));
    else if (fits)
        std::memcpy(in.into, sender.data, static_cast<std::size_t>(in.bytes));
    const std::int64_t came = sender.bytes;
    sender.post.store(Member::kNothing);
    sender.bell.ring();
    if (fits)
        return;
    m_hub.abort(fmt::format("{}: {} bytes came from rank {} where rank {} expects {}", m_group.name, came,
                            m_group.ranks[static_cast<std::size_t>(in.from)],
                            m_group.ranks[static_cast<std::size_t>(m_rank)], in.bytes));
    m_hub.throwCause();
}

void ThreadLinks::awaitTaken(const Outgoing& out)
{
    Member& own = member(m_rank);
    m_hub.wait(
        globalRank(), own.bell, [&] { return own.post.load() == Member::kNothing; }, [&] { return late(out.to); });
}

/// Nobody may read the sender's memory once its call has ended.
void ThreadLinks::withdraw()
{
    Member& own = member(m_rank);
    int posted = own.post.load();
    while (posted != Member::kNothing) {
        if (posted != Member::kTaking && own.post.compare_exchange_strong(posted, Member::kNothing))
            return;
        std::this_thread::yield(); // a receiver is copying
        posted = own.post.load();
    }
}

std::string ThreadLinks::late(int rank) const
{
    return whoIsLate(m_hub, m_group, m_rank, rank);
}

} // namespace shardwright
