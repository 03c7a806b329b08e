// Ranks as processes: rings over MPI's point-to-point messages, so that what is counted is what goes out, and no call
// waits longer than the time limit.

#include <algorithm>

#include <fmt/format.h>

#include "executor/comm/mpi/mpi_world.hpp"
#include "executor/comm/ring_communicator.hpp"
#include "executor/elements.hpp"

namespace shardwright {

namespace {

/// MPI counts a message's bytes in an int.
constexpr std::int64_t kLongestMessage = std::int64_t{1} << 30;
/// Tags that any MPI library has (MPI_TAG_UB is at least 32767).
constexpr int kTags = 32767;

class MpiLinks final : public Links {
public:
    MpiLinks(MpiWorld& world, const Group& group, int tag)
        : m_world(world), m_first(static_cast<int>(group.firstRank(world.rank()))),
          m_stride(static_cast<int>(group.stride)), m_size(static_cast<int>(group.ranks)),
          m_rank(static_cast<int>(group.placeOf(world.rank()))), m_tag(tag), m_name(group.name)
    {
    }

    int size() const override { return m_size; }
    int rank() const override { return m_rank; }
    void name(const char* call) { m_call = call; }

protected:
    void carry(const Outgoing& out, const Incoming& in) override
    {
        std::byte* into = in.into;
        if (in.added) {
            m_received.resize(static_cast<std::size_t>(in.bytes));
            into = m_received.data();
        }
        m_requests.clear();
        eachMessage(in.bytes, [&](std::int64_t first, int bytes) {
            MPI_Irecv(into + first, bytes, MPI_BYTE, worldRank(in.from), m_tag, m_world.messages(), newRequest());
        });
        eachMessage(out.bytes, [&](std::int64_t first, int bytes) {
            MPI_Isend(out.data + first, bytes, MPI_BYTE, worldRank(out.to), m_tag, m_world.messages(), newRequest());
        });
        m_world.wait(m_requests, fmt::format("{} of group {}", m_call, m_name));
        if (in.added)
            addElements(into, *in.added, in.into, *in.added, in.bytes / (bitsOf(*in.added) / 8));
    }

private:
    template <typename Use> static void eachMessage(std::int64_t bytes, const Use& use)
    {
        for (std::int64_t first = 0; first < bytes; first += kLongestMessage)
            use(first, static_cast<int>(std::min(kLongestMessage, bytes - first)));
    }
    MPI_Request* newRequest()
    {
        m_requests.push_back(MPI_REQUEST_NULL);
        return &m_requests.back();
    }
    int worldRank(int place) const { return m_first + place * m_stride; }

    MpiWorld& m_world;
    int m_first;
    int m_stride;
    int m_size;
    int m_rank;
    int m_tag;
    std::string m_name;
    const char* m_call = "";
    std::vector<MPI_Request> m_requests;
    std::vector<std::byte> m_received;
};

class MpiCommunicator final : public RingCommunicator {
public:
    MpiCommunicator(MpiWorld& world, MpiLinks* links)
        : RingCommunicator(std::unique_ptr<Links>(links)), m_world(world), m_links(links)
    {
    }

protected:
    void begin(const char* call) override
    {
        m_links->name(call);
        m_world.listen();
    }

private:
    MpiWorld& m_world;
    MpiLinks* m_links;
};

class MpiTransport final : public Transport {
public:
    explicit MpiTransport(const TransportOptions& options)
        : m_world(std::make_shared<MpiWorld>(options)), m_everyone(make({"all ranks", m_world->ranks(), 1, 1}))
    {
    }

    int ranks() const override { return m_world->ranks(); }
    int rank() const override { return m_world->rank(); }
    std::string name() const override { return "mpi"; }

    std::unique_ptr<Communicator> communicator(const Group& group) override
    {
        checkGroup(group, rank(), ranks());
        return make(group);
    }

    double sum(double value) override
    {
        std::vector<double> values(static_cast<std::size_t>(ranks()));
        m_everyone->allGather(&value, values.data(), sizeof value);
        double total = 0;
        for (const double each : values)
            total += each;
        return total;
    }

    void abort(const std::string& cause) noexcept override { m_world->abort(cause); }

private:
    /// All ranks make theirs in the same order, so the number of those before makes a tag that they share.
    std::unique_ptr<MpiCommunicator> make(const Group& group)
    {
        const int tag = m_made++ % kTags;
        return std::make_unique<MpiCommunicator>(*m_world, std::make_unique<MpiLinks>(*m_world, group, tag).release());
    }

    std::shared_ptr<MpiWorld> m_world;
    int m_made = 0;
    std::unique_ptr<MpiCommunicator> m_everyone;
};

} // namespace

bool hasMpi()
{
    return true;
}

std::unique_ptr<Transport> makeMpiTransport(const TransportOptions& options)
{
    return std::make_unique<MpiTransport>(options);
}

} // namespace shardwright
