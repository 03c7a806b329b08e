#include <stdexcept>
#include <tuple>

#include <fmt/format.h>

#include "executor/comm/threads/thread_communicator.hpp"

namespace shardwright {

namespace {

class ThreadTransport final : public Transport {
public:
    ThreadTransport(std::shared_ptr<Hub> hub, int rank, const ThreadTransportOptions& options)
        : m_hub(std::move(hub)), m_rank(rank), m_options(options),
          m_everyone(m_hub, m_hub->group({"all ranks", m_hub->ranks()}, rank, 0), rank, options)
    {
    }

    int ranks() const override { return m_hub->ranks(); }
    int rank() const override { return m_rank; }
    std::string name() const override { return "threads"; }

    std::unique_ptr<Communicator> communicator(const Group& group) override
    {
        // m_everyone has number 0 of its shape.
        const int count = ++m_made[{group.firstRank(m_rank), group.ranks, group.stride}];
        return std::make_unique<ThreadCommunicator>(m_hub, m_hub->group(group, m_rank, count),
                                                    static_cast<int>(group.placeOf(m_rank)), m_options);
    }
    double sum(double value) override { return m_everyone.sum(value); }
    void abort(const std::string& cause) noexcept override { m_hub->abort(cause); }

private:
    std::shared_ptr<Hub> m_hub;
    int m_rank;
    ThreadTransportOptions m_options;
    ThreadCommunicator m_everyone;
    std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, int> m_made; // communicators so far, by shape
};

} // namespace

std::vector<std::unique_ptr<Transport>> makeThreadTransports(int ranks, const ThreadTransportOptions& options)
{
    if (ranks < 1)
        throw std::invalid_argument(fmt::format("a transport needs at least one rank, not {}", ranks));
    const auto hub = std::make_shared<Hub>(ranks, options.timeLimit);
    std::vector<std::unique_ptr<Transport>> transports;
    for (int rank = 0; rank < ranks; ++rank)
        transports.push_back(std::make_unique<ThreadTransport>(hub, rank, options));
    return transports;
}

} // namespace shardwright
