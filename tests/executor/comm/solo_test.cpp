#include <vector>

#include <gtest/gtest.h>

#include "tests/executor/comm/thread_ranks.hpp"

namespace shardwright {

namespace {

/// What every rank sends in one collective of each kind, odd sizes included.
std::vector<std::int64_t> sentIn(Communicator& group)
{
    constexpr std::int64_t kElements = 1013; // prime: no number of ranks divides it
    const auto ranks = static_cast<std::size_t>(group.size());
    std::vector<float> all(kElements * ranks, 1.0F);
    std::vector<float> other(kElements * ranks, 1.0F);
    std::vector<std::int64_t> sent;
    const auto note = [&] { sent.push_back(group.lastSent().count()); };
    group.allGather(other.data(), all.data(), kElements * 4), note();
    group.reduceScatter(all.data(), other.data(), kElements, DType::Bf16), note();
    group.allReduce(all.data(), kElements, DType::Fp32), note();
    group.reduce(all.data(), kElements, DType::Fp32, group.size() - 1), note();
    group.broadcast(all.data(), kElements * 4, 0), note();
    group.allToAll(other.data(), all.data(), kElements * 4), note();
    group.barrier(), note();
    return sent;
}

/// Counted alone, a rank sends to the byte what it sends in a ring of real ranks.
TEST(SoloTransport, CountsWhatEachRankOfARealRingSends)
{
    ThreadTransportOptions ring;
    ring.algorithm = CollectiveAlgorithm::Ring;
    for (const Group& group : {Group{"world", 6, 1, 1}, Group{"shard", 3, 1, 1}, Group{"replicate", 2, 1, 3}})
        EXPECT_EQ(runRanks(6, ring,
                           [&](Transport& transport) {
                               const auto alone = makeSoloTransport(transport.rank(), transport.ranks());
                               EXPECT_EQ(sentIn(*alone->communicator(group)), sentIn(*transport.communicator(group)));
                           }),
                  std::vector<std::string>(6));
}

TEST(SoloTransport, LeavesWhatRanksThatAreAllAlikeWouldLeave)
{
    const auto transport = makeSoloTransport(1, 3);
    const auto group = transport->communicator({"world", 3, 1, 1});
    using Values = std::vector<float>;
    Values all(6, -1.0F);
    const Values part{2.0F, 3.0F};
    group->allGather(part.data(), all.data(), 8);
    EXPECT_EQ(all, (Values{2, 3, 2, 3, 2, 3}));
    Values data{1, 2, 3, 4, 5, 6};
    group->allReduce(data.data(), 6, DType::Fp32);
    EXPECT_EQ(data, (Values{3, 6, 9, 12, 15, 18}));
    Values own(2);
    group->reduceScatter(data.data(), own.data(), 2, DType::Fp32);
    EXPECT_EQ(own, (Values{27, 36}));
    const Values pieces{7, 8, 9};
    Values received(3);
    group->allToAll(pieces.data(), received.data(), 4);
    EXPECT_EQ(received, (Values{8, 8, 8}));
    EXPECT_EQ(transport->sum(1.5), 4.5);
    EXPECT_EQ(transport->name(), "solo");
}

TEST(SoloTransport, RefusesRanksAndGroupsThatAreNone)
{
    EXPECT_THROW(makeSoloTransport(3, 3), std::invalid_argument);
    EXPECT_THROW(makeSoloTransport(-1, 3), std::invalid_argument);
    EXPECT_THROW(makeSoloTransport(2, 3)->communicator({"shard", 2, 1, 1}), std::invalid_argument);
}

} // namespace

} // namespace shardwright
