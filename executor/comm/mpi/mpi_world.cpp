#include "executor/comm/mpi/mpi_world.hpp"

#include <algorithm>
#include <stdexcept>

#include <fmt/format.h>

#include "core/diagnostics.hpp"

namespace shardwright {

namespace {

// First letters of words.
constexpr char kAbort = 'A'; // and the cause
constexpr char kLost = 'L';  // likewise: a rank does not answer
constexpr char kRollCall = 'R';
constexpr char kPresent = 'P';

constexpr int kWordTag = 1;
/// How long a rank that waits keeps looking before it sleeps between looks: where ranks share cores, others get on
/// meanwhile. Of time, not of looks: beside busy processes each look gives away a slice of the processor.
constexpr std::chrono::microseconds kLooksFor{200};
constexpr std::chrono::microseconds kNap{50};
/// How long the ranks that wait have to answer a roll call, and all of them to come to the end after a failure.
constexpr std::chrono::milliseconds kGrace{2000};
/// Between ranks that find the same missing, or would end a job whose other ranks do not: the first one's word is
/// enough.
constexpr std::chrono::milliseconds kTurn{200};
constexpr int kMostTurns = 4;

void pause(std::chrono::steady_clock::time_point since)
{
    if (std::chrono::steady_clock::now() - since < kLooksFor)
        std::this_thread::yield();
    else
        std::this_thread::sleep_for(kNap);
}

std::string listOf(const std::vector<int>& ranks)
{
    std::string names = ranks.size() == 1 ? "rank " : "ranks ";
    for (std::size_t i = 0; i < ranks.size(); ++i)
        names += (i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ") + std::to_string(ranks[i]);
    return names;
}

} // namespace

MpiWorld::MpiWorld(const TransportOptions& options)
    : m_timeLimit(options.timeLimit), m_owner(std::this_thread::get_id())
{
    int begun = 0;
    MPI_Initialized(&begun);
    if (begun != 0)
        throw std::logic_error("MPI has one transport a process");
    int given = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &given);
    if (given < MPI_THREAD_SERIALIZED) {
        MPI_Finalize();
        throw EnvironmentError("this MPI library does not let one thread call it after another");
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &m_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &m_ranks);
    MPI_Comm_dup(MPI_COMM_WORLD, &m_messages);
    MPI_Comm_dup(MPI_COMM_WORLD, &m_words);
    m_present.resize(static_cast<std::size_t>(m_ranks));
}

MpiWorld::~MpiWorld()
{
    if (m_ending && !m_announced)
        announce();
    if (m_lost) {
        if (m_heard) // who told it ends this process too
            std::this_thread::sleep_for(kGrace);
        endAll();
    }
    std::vector<MPI_Request> all(1);
    MPI_Ibarrier(m_words, all.data());
    if (!ended(all, Clock::now() + (m_ending ? kGrace + turn() : m_timeLimit)))
        endAll();
    for (Word& word : m_outgoing)
        MPI_Wait(&word.request, MPI_STATUS_IGNORE); // everyone listens while it waits for the others to end
    MPI_Finalize();
}

void MpiWorld::endAll()
{
    const std::lock_guard lock(m_mutex);
    const std::string text = fmt::format("shardrun: {}; a rank does not end: MPI ends them all\n",
                                         m_cause.empty() ? "the run is over" : m_cause);
    std::fputs(text.c_str(), stderr);
    MPI_Abort(MPI_COMM_WORLD, 3);
}

void MpiWorld::say(int rank, const std::string& text)
{
    m_outgoing.push_back({text});
    Word& word = m_outgoing.back(); // a deque keeps it where it is
    MPI_Isend(word.text.data(), static_cast<int>(word.text.size()), MPI_CHAR, rank, kWordTag, m_words, &word.request);
}

void MpiWorld::sayToOthers(const std::string& text)
{
    for (int rank = 0; rank < m_ranks; ++rank)
        if (rank != m_rank)
            say(rank, text);
}

void MpiWorld::announce()
{
    m_announced = true;
    const std::lock_guard lock(m_mutex);
    sayToOthers((m_lost ? kLost : kAbort) + m_cause);
}

void MpiWorld::hear()
{
    for (;;) {
        int came = 0;
        MPI_Status status;
        MPI_Iprobe(MPI_ANY_SOURCE, kWordTag, m_words, &came, &status);
        if (came == 0)
            return;
        int length = 0;
        MPI_Get_count(&status, MPI_CHAR, &length);
        std::string text(static_cast<std::size_t>(length), ' ');
        MPI_Recv(text.data(), length, MPI_CHAR, status.MPI_SOURCE, kWordTag, m_words, MPI_STATUS_IGNORE);
        if (text.front() == kRollCall) {
            say(status.MPI_SOURCE, {kPresent});
        } else if (text.front() == kPresent) {
            m_present[static_cast<std::size_t>(status.MPI_SOURCE)] = true;
        } else {
            const std::lock_guard lock(m_mutex);
            if (!m_ending) {
                m_cause = text.substr(1);
                m_heard = true;
                m_lost = text.front() == kLost;
            }
            m_ending = true;
            m_announced = true;
        }
    }
}

void MpiWorld::listen()
{
    m_owner = std::this_thread::get_id();
    hear();
    if (!m_ending)
        return;
    if (!m_announced)
        announce();
    const std::lock_guard lock(m_mutex);
    if (m_heard)
        throw HeardError(m_cause);
    throw TransportError(m_cause);
}

void MpiWorld::abort(const std::string& cause) noexcept
{
    try {
        {
            const std::lock_guard lock(m_mutex);
            if (m_ending)
                return;
            m_cause = cause.empty() ? "the run was aborted" : cause;
            m_ending = true;
        }
        if (std::this_thread::get_id() ==
            m_owner.load()) // beside it, the owner's next call says it: one thread at a time
            announce();
    } catch (const std::exception&) { // no memory, no mutex: the others run into their time limit
        m_ending = true;
    }
}

/// Without throwing: false at the deadline.
bool MpiWorld::ended(std::vector<MPI_Request>& requests, Clock::time_point deadline)
{
    for (const auto begun = Clock::now();; pause(begun)) {
        int done = 0;
        MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
        if (done != 0)
            return true;
        if (Clock::now() > deadline)
            return false;
        hear();
    }
}

std::chrono::milliseconds MpiWorld::turn() const
{
    return kTurn * std::min(m_rank, kMostTurns);
}

/// Of the time limit, what the ranks that wait have to answer.
std::chrono::milliseconds MpiWorld::rollCall() const
{
    return std::min(kGrace, m_timeLimit / 2);
}

/// The ranks that do not say that they wait too.
std::vector<int> MpiWorld::missing()
{
    std::fill(m_present.begin(), m_present.end(), false);
    m_present[static_cast<std::size_t>(m_rank)] = true;
    sayToOthers({kRollCall});
    const auto begun = Clock::now();
    const auto deadline = begun + rollCall() + turn();
    const auto complete = [&] { return std::find(m_present.begin(), m_present.end(), false) == m_present.end(); };
    for (; !complete() && Clock::now() < deadline; pause(begun))
        listen();
    listen();
    std::vector<int> ranks;
    for (int rank = 0; rank < m_ranks; ++rank)
        if (!m_present[static_cast<std::size_t>(rank)])
            ranks.push_back(rank);
    return ranks;
}

void MpiWorld::wait(std::vector<MPI_Request>& requests, const std::string& what)
{
    try {
        const auto begun = Clock::now();
        const auto deadline = begun + m_timeLimit - rollCall();
        for (;; pause(begun)) {
            int done = 0;
            MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
            if (done != 0)
                return;
            listen();
            if (Clock::now() > deadline) {
                const std::vector<int> late = missing();
                m_lost = !late.empty();
                const std::string limit =
                    fmt::format(" within {:g} s", static_cast<double>(m_timeLimit.count()) / 1000);
                abort(late.empty()
                          ? fmt::format("the ranks did not all go on with {}{}: their calls differ", what, limit)
                          : fmt::format("{} did not come to {}{}", listOf(late), what, limit));
                listen();
            }
        }
    } catch (...) {
        cancel(requests);
        throw;
    }
}

/// A message under way is let through, so that the buffer may go; one that nobody takes stays unread. A rank that does
/// not answer could take one later, from memory that is gone: MPI is not called any more then, but to end the job.
void MpiWorld::cancel(std::vector<MPI_Request>& requests)
{
    if (m_lost)
        return;
    for (MPI_Request& request : requests)
        if (request != MPI_REQUEST_NULL)
            MPI_Cancel(&request);
    ended(requests, Clock::now() + kGrace / 4);
}

} // namespace shardwright
