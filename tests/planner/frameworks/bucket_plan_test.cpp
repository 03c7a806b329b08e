// Which ranks own what of a reduction bucket.

#include <map>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "planner/frameworks/deepspeed/bucket_plan.hpp"

namespace shardwright {
namespace {

struct Tensor {
    std::int64_t offset;
    std::int64_t numel;
};

/// One flush of these tensors, as they arrive.
BucketPlan flushOf(const std::vector<Tensor>& tensors)
{
    BucketPlan plan;
    BucketFlush flush;
    for (const Tensor& tensor : tensors) {
        plan.tensors.push_back({tensor.offset, tensor.numel, 0, 0});
        flush.elements += tensor.numel;
    }
    flush.endTensor = tensors.size();
    plan.flushes.push_back(flush);
    return plan;
}

std::vector<OwnerShare> sharesOf(const std::vector<Tensor>& tensors, std::int64_t partition)
{
    const BucketPlan plan = flushOf(tensors);
    return ownerShares(plan, plan.flushes.front(), partition);
}

void expectShare(const OwnerShare& share, std::int64_t firstOwner, std::int64_t owners, std::int64_t elements,
                 bool inOnePiece)
{
    EXPECT_EQ(share.firstOwner, firstOwner);
    EXPECT_EQ(share.owners, owners);
    EXPECT_EQ(share.elements, elements);
    EXPECT_EQ(share.inOnePiece, inOnePiece);
}

// Backward: the last tensor comes first. Elements 24 .. 29, 8 .. 23, 4 .. 7 are, in parts of ten, rank 2's six, rank
// 0's two, rank 1's ten, rank 2's four, rank 0's four.
TEST(OwnerShares, AnOwnersPiecesGoTogetherWhereverTheyLie)
{
    const std::vector<OwnerShare> shares = sharesOf({{24, 6}, {8, 16}, {4, 4}}, 10);
    ASSERT_EQ(shares.size(), 3u);
    expectShare(shares[0], 2, 1, 10, false);
    expectShare(shares[1], 0, 1, 6, false);
    expectShare(shares[2], 1, 1, 10, true);
}

TEST(OwnerShares, NeighboursOfOneOwnerAreOnePiece)
{
    const std::vector<OwnerShare> shares = sharesOf({{12, 6}, {18, 8}}, 10);
    ASSERT_EQ(shares.size(), 2u);
    expectShare(shares[0], 1, 1, 8, true);
    expectShare(shares[1], 2, 1, 6, true);
}

TEST(OwnerShares, ALargeTensorHasManyOwnersAlike)
{
    const std::vector<OwnerShare> shares = sharesOf({{5, 1000}}, 10);
    ASSERT_EQ(shares.size(), 3u);
    expectShare(shares[0], 0, 1, 5, true);
    expectShare(shares[1], 1, 99, 10, true);
    expectShare(shares[2], 100, 1, 5, true);
}

/// Against walking through the bucket element by element.
RC_GTEST_PROP(OwnerShares, AreWhatCountingElementsGives, ())
{
    const std::int64_t partition = *rc::gen::inRange<std::int64_t>(1, 40);
    const auto sizes =
        *rc::gen::nonEmpty(rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(1, 60)));
    std::vector<Tensor> tensors;
    std::int64_t offset = 0;
    for (const std::int64_t numel : sizes) {
        tensors.push_back({offset, numel});
        offset += numel;
    }
    for (std::size_t i = tensors.size(); i > 1; --i)
        std::swap(tensors[i - 1], tensors[*rc::gen::inRange<std::size_t>(0, i)]);
    std::map<std::int64_t, std::pair<std::int64_t, int>> counted; // by owner: elements, pieces
    std::int64_t before = -1;
    for (const Tensor& tensor : tensors)
        for (std::int64_t element = tensor.offset; element < tensor.offset + tensor.numel; ++element) {
            const std::int64_t owner = element / partition;
            ++counted[owner].first;
            counted[owner].second += owner != before ? 1 : 0;
            before = owner;
        }
    for (const OwnerShare& share : sharesOf(tensors, partition))
        for (std::int64_t owner = share.firstOwner; owner < share.firstOwner + share.owners; ++owner) {
            const auto found = counted.find(owner);
            RC_ASSERT(found != counted.end());
            RC_ASSERT(found->second.first == share.elements);
            RC_ASSERT((found->second.second == 1) == share.inOnePiece);
            counted.erase(found);
        }
    RC_ASSERT(counted.empty());
}

} // namespace
} // namespace shardwright
