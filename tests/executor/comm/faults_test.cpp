#include <atomic>
#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "tests/executor/comm/thread_ranks.hpp"

namespace shardwright {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kElements = 100003;

/// A sum over all ranks, again and again.
void sumForever(Transport& transport)
{
    const auto group = transport.communicator({"world", transport.ranks(), 1, 1});
    std::vector<float> data(kElements);
    for (;;)
        group->allReduce(data.data(), kElements, DType::Fp32);
}

class Faults : public testing::TestWithParam<CollectiveAlgorithm> {
protected:
    static ThreadTransportOptions options(std::chrono::milliseconds timeLimit)
    {
        ThreadTransportOptions options;
        options.timeLimit = timeLimit;
        options.algorithm = GetParam();
        return options;
    }
};

TEST_P(Faults, ARankThatThrowsEndsAllWithItsCause)
{
    const auto start = Clock::now();
    const auto ends = runRanks(4, options(60s), [](Transport& transport) {
        const auto group = transport.communicator({"world", 4, 1, 1});
        std::vector<float> data(kElements);
        for (int step = 0;; ++step) {
            if (transport.rank() == 2 && step == 5)
                throw std::runtime_error("rank 2: out of memory");
            group->allReduce(data.data(), kElements, DType::Fp32);
        }
    });
    EXPECT_EQ(ends, std::vector<std::string>(4, "rank 2: out of memory"));
    EXPECT_LT(Clock::now() - start, 30s);
}

TEST_P(Faults, ARankThatStallsIsNamedByAllOthers)
{
    std::atomic<int> ended{0};
    const auto ends = runRanks(4, options(200ms), [&](Transport& transport) {
        const auto group = transport.communicator({"world", 4, 1, 1});
        std::vector<float> data(kElements);
        for (int step = 0;; ++step) {
            if (transport.rank() == 1 && step == 3)
                while (ended < 3) // stands still until the others have given up
                    std::this_thread::sleep_for(1ms);
            try {
                group->allReduce(data.data(), kElements, DType::Fp32);
            } catch (const TransportError&) {
                ++ended;
                throw;
            }
        }
    });
    EXPECT_EQ(ends, std::vector<std::string>(4, "rank 1 did not come to all-reduce of group world within 0.2 s"));
}

TEST_P(Faults, SeveralRanksThatStallAreAllNamed)
{
    std::atomic<int> ended{0};
    const auto ends = runRanks(5, options(200ms), [&](Transport& transport) {
        const auto group = transport.communicator({"world", 5, 1, 1});
        if (transport.rank() >= 3)
            while (ended < 3)
                std::this_thread::sleep_for(1ms);
        try {
            std::vector<float> part(kElements);
            std::vector<float> all(kElements * 5);
            group->allGather(part.data(), all.data(), kElements * 4);
        } catch (const TransportError&) {
            ++ended;
            throw;
        }
    });
    EXPECT_EQ(ends,
              std::vector<std::string>(5, "ranks 3 and 4 did not come to all-gather of group world within 0.2 s"));
}

/// 0 waits for 2, which waits for 3, which stalls: 0 gives up first, but does not take 2 for the cause.
TEST_P(Faults, ARankThatWaitsForAStalledOneIsNotTheCause)
{
    std::atomic<int> ended{0};
    const auto ends = runRanks(4, options(300ms), [&](Transport& transport) {
        const auto shard = transport.communicator({"shard", 2, 1, 1});
        const auto replicate = transport.communicator({"replicate", 2, 1, 2});
        std::vector<float> data(kElements);
        try {
            if (transport.rank() == 2) {
                std::this_thread::sleep_for(100ms);
                shard->allReduce(data.data(), kElements, DType::Fp32);
            }
            if (transport.rank() == 3)
                while (ended < 3)
                    std::this_thread::sleep_for(1ms);
            replicate->allReduce(data.data(), kElements, DType::Fp32);
        } catch (const TransportError&) {
            ++ended;
            throw;
        }
    });
    for (const std::string& end : ends)
        EXPECT_NE(end.find("rank 3 did not come to"), std::string::npos) << end;
}

/// As a program does on Ctrl-C: a thread that waits for signals calls abort().
TEST_P(Faults, AbortFromAnotherThreadWakesEveryone)
{
    const auto transports = makeThreadTransports(4, options(60s));
    std::vector<std::string> ends(4);
    std::vector<std::thread> ranks;
    for (std::size_t rank = 0; rank < 4; ++rank)
        ranks.emplace_back([&, rank] {
            try {
                sumForever(*transports[rank]);
            } catch (const TransportError& error) {
                ends[rank] = error.what();
            }
        });
    std::thread signals([&] {
        std::this_thread::sleep_for(50ms);
        transports[0]->abort("interrupted");
        transports[3]->abort("interrupted again"); // the first cause stays
    });
    signals.join();
    for (std::thread& rank : ranks)
        rank.join();
    EXPECT_EQ(ends, std::vector<std::string>(4, "interrupted"));
    EXPECT_THROW(transports[1]->sum(0), TransportError);
}

TEST_P(Faults, ARankThatMovesOtherBytesIsFound)
{
    const auto ends = runRanks(3, options(500ms), [](Transport& transport) {
        const auto group = transport.communicator({"world", 3, 1, 1});
        const std::int64_t elements = transport.rank() == 2 ? 12 : 24;
        std::vector<float> data(24);
        group->allReduce(data.data(), elements, DType::Fp32);
    });
    EXPECT_FALSE(ends.front().empty());
    EXPECT_TRUE(ends.front().find("48 bytes") != std::string::npos ||
                ends.front().find("16 bytes came") != std::string::npos ||
                ends.front().find("32 bytes came") != std::string::npos)
        << ends.front();
    EXPECT_EQ(ends, std::vector<std::string>(3, ends.front()));
}

INSTANTIATE_TEST_SUITE_P(Threads, Faults, testing::Values(CollectiveAlgorithm::Direct, CollectiveAlgorithm::Ring),
                         [](const auto& instance) {
                             return std::string(instance.param == CollectiveAlgorithm::Direct ? "Direct" : "Ring");
                         });

/// Ranks leave at any moment, with their buffers; nobody may read them afterwards (the sanitizers watch).
TEST(Faults, BuffersMayGoAsSoonAsACallHasFailed)
{
    for (int round = 0; round < 40; ++round) {
        ThreadTransportOptions options;
        options.algorithm = round % 2 == 0 ? CollectiveAlgorithm::Direct : CollectiveAlgorithm::Ring;
        std::atomic<int> calls{0};
        const auto ends = runRanks(4, options, [&](Transport& transport) {
            const auto group = transport.communicator({"world", 4, 1, 1});
            for (;;) {
                std::vector<float> data(kElements, 1.0F);
                if (++calls == 7 + round)
                    throw std::runtime_error("enough");
                group->allReduce(data.data(), kElements, DType::Fp32);
            }
        });
        ASSERT_EQ(ends, std::vector<std::string>(4, "enough"));
    }
}

} // namespace

} // namespace shardwright
