#include "tests/executor/comm/thread_ranks.hpp"

#include <thread>

namespace shardwright {

std::vector<std::string> runRanks(int ranks, const ThreadTransportOptions& options,
                                  const std::function<void(Transport&)>& body)
{
    const auto transports = makeThreadTransports(ranks, options);
    std::vector<std::string> ends(transports.size());
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < transports.size(); ++rank)
        threads.emplace_back([&, rank] {
            try {
                body(*transports[rank]);
            } catch (const std::exception& error) {
                ends[rank] = error.what();
                transports[rank]->abort(error.what());
            }
        });
    for (std::thread& thread : threads)
        thread.join();
    return ends;
}

} // namespace shardwright
