#include <array>

#include <gtest/gtest.h>

#include "tests/executor/comm/collective_checks.hpp"
#include "tests/executor/comm/thread_ranks.hpp"

namespace shardwright {

namespace {

using Setting = std::tuple<int, CollectiveAlgorithm>;

class ThreadCollectives : public testing::TestWithParam<Setting> {
protected:
    int ranks() const { return std::get<0>(GetParam()); }

    void run(const std::function<void(Transport&)>& body) const
    {
        ThreadTransportOptions options;
        options.algorithm = std::get<1>(GetParam());
        EXPECT_EQ(runRanks(ranks(), options, body), std::vector<std::string>(static_cast<std::size_t>(ranks())));
    }
    Group everyone() const { return {"world", ranks(), 1, 1}; }
};

TEST_P(ThreadCollectives, GiveWhatPlainSumsAndCopiesGive)
{
    run([&](Transport& transport) { checkCollectives(transport, everyone()); });
}

TEST_P(ThreadCollectives, RoundOncePerHop)
{
    run([&](Transport& transport) { checkRoundingOfSums(transport, everyone()); });
}

TEST_P(ThreadCollectives, CountWhatIsSent)
{
    run([&](Transport& transport) { checkSentBytes(transport, everyone()); });
}

class ThreadGroups : public ThreadCollectives {};

TEST_P(ThreadGroups, OfNeighboursAndOfReplicasDoNotDisturbOneAnother)
{
    const std::int64_t half = ranks() / 2;
    run([&](Transport& transport) {
        checkCollectives(transport, {"shard", 2, 1, 1});
        checkCollectives(transport, {"replicate", half, 1, 2});
        checkCollectives(transport, {"shard", half, 1, 1});
        checkCollectives(transport, {"replicate", 2, 1, half});
        checkCollectives(transport, {"alone", 1, 1, 1});
    });
}

/// All communicators at once, one made after the other, as an executor does with those of a schedule.
TEST_P(ThreadCollectives, CommunicatorsLiveSideBySide)
{
    run([&](Transport& transport) {
        const auto first = transport.communicator(everyone());
        const auto second = transport.communicator(everyone());
        const auto alone = transport.communicator({"alone", 1, 1, 1});
        for (int round = 0; round < 200; ++round) {
            float value = static_cast<float>(transport.rank());
            (round % 2 == 0 ? first : second)->allReduce(&value, 1, DType::Fp32);
            alone->allReduce(&value, 1, DType::Fp32);
            ASSERT_EQ(value, static_cast<float>(ranks() * (ranks() - 1) / 2));
        }
    });
}

std::string nameOfSetting(const testing::TestParamInfo<Setting>& instance)
{
    constexpr std::array kNames{"BySize", "Direct", "Ring"};
    return std::to_string(std::get<0>(instance.param)) +
           kNames.at(static_cast<std::size_t>(std::get<1>(instance.param)));
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadCollectives,
                         testing::Combine(testing::Values(1, 2, 3, 4, 7, 8),
                                          testing::Values(CollectiveAlgorithm::BySize, CollectiveAlgorithm::Direct,
                                                          CollectiveAlgorithm::Ring)),
                         nameOfSetting);
INSTANTIATE_TEST_SUITE_P(EvenRanks, ThreadGroups,
                         testing::Combine(testing::Values(2, 4, 8),
                                          testing::Values(CollectiveAlgorithm::Direct, CollectiveAlgorithm::Ring)),
                         nameOfSetting);

TEST(ThreadTransport, RefusesGroupsThatReachPastItsRanks)
{
    for (const std::string& end : runRanks(3, {}, [](Transport& transport) {
             transport.communicator({"replicate", 2, 1, 2});
         }))
        EXPECT_TRUE(end.find("group replicate reaches rank 3, but there are 3 ranks") != std::string::npos ||
                    end.empty())
            << end;
    EXPECT_THROW(makeThreadTransports(0), std::invalid_argument);
}

TEST(ThreadTransport, RefusesToSumIntegers)
{
    for (const std::string& end : runRanks(1, {}, [](Transport& transport) {
             std::int64_t value = 1;
             transport.communicator({"world", 1, 1, 1})->allReduce(&value, 1, DType::Int64);
         }))
        EXPECT_EQ(end, "collectives cannot sum elements of type int64");
}

} // namespace

} // namespace shardwright
