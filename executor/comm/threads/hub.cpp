#include "executor/comm/threads/hub.hpp"

#include <cstring>
#include <thread>

#include <fmt/format.h>

#include "executor/comm/ring_communicator.hpp"

namespace shardwright {

namespace {

/// A thread looks for so long before it sleeps: neighbours mostly come within microseconds, while a sleep costs tens
/// of them. Not so many looks: beside busy processes each gives away a whole slice of the processor's time, whereas
/// who slept is soon let in again.
constexpr std::chrono::microseconds kLooksFor{50};

class Waiting {
public:
    explicit Waiting(std::atomic<bool>& flag) : m_flag(flag) { m_flag.store(true); }
    ~Waiting() { m_flag.store(false); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

private:
    std::atomic<bool>& m_flag;
};

} // namespace

void Bell::ring()
{
    // Whoever waits has either seen the change or sleeps already: it looks with the mutex held.
    {
        const std::lock_guard lock(m_mutex);
    }
    m_changed.notify_all();
}

bool Call::operator==(const Call& other) const
{
    return std::strcmp(name, other.name) == 0 && bytes == other.bytes && dtype == other.dtype && root == other.root;
}

SharedGroup::SharedGroup(std::string groupName, std::vector<int> globalRanks)
    : name(std::move(groupName)), ranks(std::move(globalRanks)), members(ranks.size()), scalars(ranks.size(), 0.0)
{
}

std::shared_ptr<SharedGroup> Hub::group(const Group& group, int rank, int count)
{
    const std::int64_t first = group.firstRank(rank);
    checkGroup(group, rank, m_ranks);
    const std::lock_guard lock(m_mutex);
    std::shared_ptr<SharedGroup>& shared = m_groups[{first, group.ranks, group.stride, count}];
    if (!shared) {
        std::vector<int> ranks;
        for (std::int64_t place = 0; place < group.ranks; ++place)
            ranks.push_back(static_cast<int>(first + place * group.stride));
        shared = std::make_shared<SharedGroup>(std::string(group.name), std::move(ranks));
    }
    return shared;
}

void Hub::abort(const std::string& cause) noexcept
{
    try {
        const std::lock_guard lock(m_mutex);
        if (m_aborted.load())
            return;
        try {
            m_cause = cause;
        } catch (const std::bad_alloc&) {
            m_cause.clear();
        }
        m_aborted.store(true);
        for (const auto& [key, group] : m_groups)
            for (Member& member : group->members)
                member.bell.ring();
    } catch (const std::system_error&) { // a mutex that cannot be locked: whoever waits runs into the time limit
        m_aborted.store(true);
    }
}

void Hub::throwCause()
{
    const std::lock_guard lock(m_mutex);
    throw TransportError(m_cause.empty() ? "the run was aborted" : m_cause);
}

void Hub::wait(int rank, Bell& bell, const std::function<bool()>& ready, const std::function<std::string()>& late)
{
    const auto begun = std::chrono::steady_clock::now();
    auto now = begun;
    for (; now - begun < kLooksFor; now = std::chrono::steady_clock::now()) {
        if (ready())
            return;
        if (aborted())
            throwCause();
        std::this_thread::yield();
    }
    const Waiting waiting(m_waiting[static_cast<std::size_t>(rank)]);
    const auto deadline = now + m_timeLimit;
    std::unique_lock lock(bell.m_mutex);
    while (!ready()) {
        if (aborted()) {
            lock.unlock();
            throwCause();
        }
        if (bell.m_changed.wait_until(lock, deadline) == std::cv_status::timeout && !ready() && !aborted()) {
            lock.unlock(); // abort() rings this bell too
            abort(late() + " within " + timeLimitText());
            throwCause();
        }
    }
}

std::string Hub::timeLimitText() const
{
    return fmt::format("{:g} s", static_cast<double>(m_timeLimit.count()) / 1000.0);
}

} // namespace shardwright
