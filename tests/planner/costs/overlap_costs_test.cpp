#include "planner/costs/overlap_costs.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"

namespace shardwright {
namespace {

Op op(OpKind kind, Stream stream)
{
    Op op;
    op.kind = kind;
    op.stream = stream;
    return op;
}

TEST(OverlapCosts, CollectivesOnTheComputeStreamAreNoKernelsThatOthersSlowAndPipelineMessagesSlowNothing)
{
    StepLoad load;
    load.add(op(OpKind::Forward, Stream::Compute), 3);
    load.add(op(OpKind::AllReduce, Stream::Compute), 1);
    load.add(op(OpKind::AllGather, Stream::AllGather), 2);
    load.add(op(OpKind::Send, Stream::Pipeline), 5);
    EXPECT_DOUBLE_EQ(load.computeStream, 4);
    EXPECT_DOUBLE_EQ(load.kernels, 3);
    EXPECT_DOUBLE_EQ(load.collectives, 2);
}

TEST(OverlapCosts, ByHand)
{
    const Cluster a100 = readCluster("dgx-a100-80gb"); // 24 channels on 108 multiprocessors
    const double held = 24.0 / 108;
    // ten seconds of computing hide four of collectives
    EXPECT_NEAR(lostBesideCollectives(a100, {10, 10, 4}, 10), 4 * held, 1e-12);
    // one of the four is waited for
    EXPECT_NEAR(lostBesideCollectives(a100, {10, 10, 4}, 11), 3 * held, 1e-12);
    // all of them are: nothing runs beside
    EXPECT_EQ(lostBesideCollectives(a100, {10, 10, 4}, 14), 0);
    // collectives set the pace: computing has time to be slow
    EXPECT_EQ(lostBesideCollectives(a100, {10, 10, 20}, 20), 0);
    EXPECT_EQ(lostBesideCollectives(a100, {10, 10, 0}, 10), 0);
    // a card in a PCIe slot has two channels
    EXPECT_NEAR(lostBesideCollectives(readCluster("8xrtx4090"), {10, 10, 4}, 10), 4 * 2.0 / 128, 1e-12);
}

RC_GTEST_PROP(OverlapCosts, NeverMoreThanTheShareThatIsHeldOfWhatRunsBeside, ())
{
    static const Cluster cluster = readCluster("dgx-h100");
    const auto any = [] { return *rc::gen::inRange(0, 1000000) * 1e-3; };
    StepLoad load;
    load.kernels = any();
    load.computeStream = load.kernels + any();
    load.collectives = any();
    const double seconds = std::max(load.computeStream, load.collectives) + any();
    const double lost = lostBesideCollectives(cluster, load, seconds);
    RC_ASSERT(lost >= 0);
    RC_ASSERT(lost <= 24.0 / 132 * std::min(load.kernels, load.collectives) + 1e-9);
}

} // namespace
} // namespace shardwright
