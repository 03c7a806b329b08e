// Runs under mpirun: every rank runs all tests, in the same order. The last test ends the transport.
//   mpirun -n 4 mpi_tests                the collectives
//   mpirun -n 4 mpi_tests --fault=stall  a rank stalls; also throw, signal: each rank prints how its run ended

#include <chrono>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "executor/comm/transports.hpp"
#include "tests/executor/comm/collective_checks.hpp"

namespace shardwright {

namespace {

using namespace std::chrono_literals;

Transport* world = nullptr; // of this process, while main runs

TEST(MpiTransport, CollectivesGiveWhatPlainSumsAndCopiesGive)
{
    checkCollectives(*world, {"world", world->ranks(), 1, 1});
}

TEST(MpiTransport, SumsRoundOncePerHop)
{
    checkRoundingOfSums(*world, {"world", world->ranks(), 1, 1});
}

TEST(MpiTransport, CountsWhatIsSent)
{
    checkSentBytes(*world, {"world", world->ranks(), 1, 1});
}

TEST(MpiTransport, GroupsOfNeighboursAndOfReplicas)
{
    const std::int64_t half = world->ranks() / 2;
    checkCollectives(*world, {"alone", 1, 1, 1});
    if (world->ranks() % 2 == 0) {
        checkCollectives(*world, {"shard", 2, 1, 1});
        checkCollectives(*world, {"replicate", half, 1, 2});
    }
    EXPECT_THROW(world->communicator({"beyond", world->ranks() + 1, 1, 1}), std::invalid_argument);
}

/// Sums for ever; rank 2 does something else after a while.
int faultOf(Transport& transport, const std::string& fault)
{
    try {
        std::thread signals;
        const auto group = transport.communicator({"world", transport.ranks(), 1, 1});
        if (fault == "signal" && transport.rank() == 2)
            signals = std::thread([&] {
                std::this_thread::sleep_for(100ms);
                transport.abort("interrupted");
            });
        std::vector<float> data(100003);
        try {
            for (int step = 0;; ++step) {
                if (transport.rank() == 2 && step == 5 && fault == "throw")
                    throw std::runtime_error("rank 2: out of memory");
                if (transport.rank() == 2 && step == 5 && fault == "stall")
                    std::this_thread::sleep_for(1h);
                group->allReduce(data.data(), static_cast<std::int64_t>(data.size()), DType::Fp32);
            }
        } catch (...) {
            if (signals.joinable())
                signals.join();
            throw;
        }
    } catch (const std::exception& error) {
        transport.abort(error.what());
        fmt::print("[rank {} ended: {}]\n", transport.rank(), error.what());
        std::fflush(stdout);
        return 3;
    }
}

} // namespace

int mpiMain(int argc, char** argv)
{
    testing::InitGoogleTest(&argc, argv);
    const bool faulty = argc == 2 && std::strncmp(argv[1], "--fault=", 8) == 0;
    TransportOptions options;
    options.timeLimit = faulty ? 1000ms : 60000ms;
    const auto transport = makeMpiTransport(options);
    if (faulty)
        return faultOf(*transport, argv[1] + 8);
    world = transport.get();
    if (transport->rank() != 0) // one rank speaks; all fail
        delete testing::UnitTest::GetInstance()->listeners().Release(
            testing::UnitTest::GetInstance()->listeners().default_result_printer());
    const int failed = RUN_ALL_TESTS();
    return transport->sum(failed) == 0 ? 0 : 1;
}

} // namespace shardwright

int main(int argc, char** argv)
{
    return shardwright::mpiMain(argc, argv);
}
