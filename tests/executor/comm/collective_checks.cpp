#include "tests/executor/comm/collective_checks.hpp"

#include <cmath>
#include <cstring>
#include <functional>

#include <gtest/gtest.h>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

/// Elements of a part: none, fewer than ranks, odd, and more than a megabyte in all.
const std::vector<std::int64_t> kSizes{0, 1, 3, 17, 1021, 131077};

using Values = std::vector<float>;
using Raw = std::vector<std::byte>;

/// Element i of rank r: small integers, whose sums over 8 ranks are exact even with bf16's 8 bits.
float valueAt(int rank, std::int64_t i)
{
    return static_cast<float>((rank * 7 + i * 3) % 31 - 15);
}

Raw stored(const Values& values, DType dtype)
{
    const auto count = static_cast<std::int64_t>(values.size());
    Raw raw(static_cast<std::size_t>(bytesOf(count, dtype).count()));
    if (count > 0)
        convertElements(values.data(), DType::Fp32, raw.data(), dtype, count);
    return raw;
}

Values loaded(const std::byte* raw, std::int64_t count, DType dtype)
{
    Values values(static_cast<std::size_t>(count));
    if (count > 0)
        convertElements(raw, dtype, values.data(), DType::Fp32, count);
    return values;
}

Values valuesOf(int rank, std::int64_t count)
{
    Values values;
    for (std::int64_t i = 0; i < count; ++i)
        values.push_back(valueAt(rank, i));
    return values;
}

Values sumOfAll(int ranks, std::int64_t first, std::int64_t count)
{
    Values sum(static_cast<std::size_t>(count), 0.0F);
    for (int rank = 0; rank < ranks; ++rank)
        for (std::int64_t i = 0; i < count; ++i)
            sum[static_cast<std::size_t>(i)] += valueAt(rank, first + i);
    return sum;
}

void checkAllGather(Communicator& group, std::int64_t part, bool inPlace)
{
    const std::int64_t bytes = part * 4;
    Raw all(static_cast<std::size_t>(bytes * group.size()), std::byte{0xee});
    const Raw own = stored(valuesOf(group.rank(), part), DType::Fp32);
    std::byte* place = all.data() + group.rank() * bytes;
    if (inPlace && bytes > 0)
        std::memcpy(place, own.data(), own.size());
    group.allGather(inPlace ? place : own.data(), all.data(), bytes);
    for (int rank = 0; rank < group.size(); ++rank)
        EXPECT_EQ(loaded(all.data() + rank * bytes, part, DType::Fp32), valuesOf(rank, part))
            << "all-gather, part of rank " << rank << " at " << group.rank();
}

void checkReduceScatter(Communicator& group, std::int64_t part, DType dtype, bool inPlace)
{
    Raw all = stored(valuesOf(group.rank(), part * group.size()), dtype);
    Raw own(static_cast<std::size_t>(bytesOf(part, dtype).count()), std::byte{0xee});
    std::byte* target = inPlace ? all.data() + group.rank() * bytesOf(part, dtype).count() : own.data();
    group.reduceScatter(all.data(), target, part, dtype);
    EXPECT_EQ(loaded(target, part, dtype), sumOfAll(group.size(), group.rank() * part, part))
        << "reduce-scatter of " << nameOf(dtype) << " at " << group.rank();
}

void checkAllReduce(Communicator& group, std::int64_t elements, DType dtype)
{
    Raw data = stored(valuesOf(group.rank(), elements), dtype);
    group.allReduce(data.data(), elements, dtype);
    EXPECT_EQ(loaded(data.data(), elements, dtype), sumOfAll(group.size(), 0, elements))
        << "all-reduce of " << elements << " " << nameOf(dtype) << " at " << group.rank();
}

void checkReduce(Communicator& group, std::int64_t elements, DType dtype, int root)
{
    Raw data = stored(valuesOf(group.rank(), elements), dtype);
    group.reduce(data.data(), elements, dtype, root);
    if (group.rank() == root) {
        EXPECT_EQ(loaded(data.data(), elements, dtype), sumOfAll(group.size(), 0, elements))
            << "reduce of " << nameOf(dtype) << " to " << root;
    }
}

void checkBroadcast(Communicator& group, std::int64_t elements, int root)
{
    Raw data = stored(valuesOf(group.rank(), elements), DType::Fp32);
    group.broadcast(data.data(), elements * 4, root);
    EXPECT_EQ(loaded(data.data(), elements, DType::Fp32), valuesOf(root, elements))
        << "broadcast from " << root << " at " << group.rank();
}

void checkAllToAll(Communicator& group, std::int64_t piece)
{
    const Raw from = stored(valuesOf(group.rank(), piece * group.size()), DType::Fp32);
    Raw to(from.size(), std::byte{0xee});
    group.allToAll(from.data(), to.data(), piece * 4);
    for (int rank = 0; rank < group.size(); ++rank) {
        Values expected;
        for (std::int64_t i = 0; i < piece; ++i)
            expected.push_back(valueAt(rank, group.rank() * piece + i));
        EXPECT_EQ(loaded(to.data() + rank * piece * 4, piece, DType::Fp32), expected)
            << "all-to-all, piece of " << rank << " at " << group.rank();
    }
}

} // namespace

void checkCollectives(Transport& transport, const Group& group)
{
    const auto communicator = transport.communicator(group);
    ASSERT_EQ(communicator->size(), group.ranks);
    ASSERT_EQ(communicator->rank(), group.placeOf(transport.rank()));
    for (const std::int64_t elements : kSizes) {
        for (const bool inPlace : {false, true})
            checkAllGather(*communicator, elements, inPlace);
        checkAllToAll(*communicator, elements);
        for (const DType dtype : {DType::Fp32, DType::Bf16, DType::Fp16}) {
            for (const bool inPlace : {false, true})
                checkReduceScatter(*communicator, elements, dtype, inPlace);
            checkAllReduce(*communicator, elements, dtype);
            for (int root = 0; root < communicator->size(); ++root)
                checkReduce(*communicator, elements, dtype, root);
        }
        for (int root = 0; root < communicator->size(); ++root)
            checkBroadcast(*communicator, elements, root);
        communicator->barrier();
    }
    const int last = transport.ranks() - 1;
    EXPECT_EQ(transport.sum(transport.rank() + 0.5), last * (last + 1) / 2.0 + 0.5 * transport.ranks());
}

void checkRoundingOfSums(Transport& transport, const Group& group)
{
    const auto communicator = transport.communicator(group);
    constexpr std::int64_t kElements = 4099;
    // Away from zero, where fp16 has fewer bits.
    const auto exact = [](int rank, std::int64_t i) { return 1.5 + std::sin(static_cast<double>(rank * 8191 + i)); };
    // A rounding is off by half a step at most: 8 significant bits and 11.
    for (const auto& [dtype, rounding] : {std::pair{DType::Bf16, 0x1p-8}, std::pair{DType::Fp16, 0x1p-11}}) {
        Values own;
        for (std::int64_t i = 0; i < kElements; ++i)
            own.push_back(static_cast<float>(exact(communicator->rank(), i)));
        Raw data = stored(own, dtype);
        communicator->allReduce(data.data(), kElements, dtype);
        const Values sums = loaded(data.data(), kElements, dtype);
        for (std::int64_t i = 0; i < kElements; ++i) {
            // What is stored is rounded once, each of n - 1 sums once more; a partial sum is at most sum |x|.
            double sum = 0;
            double magnitudes = 0;
            for (int rank = 0; rank < communicator->size(); ++rank) {
                sum += exact(rank, i);
                magnitudes += std::abs(exact(rank, i));
            }
            ASSERT_NEAR(sums[static_cast<std::size_t>(i)], sum, communicator->size() * rounding * 1.01 * magnitudes)
                << nameOf(dtype) << " element " << i;
        }
    }
}

void checkSentBytes(Transport& transport, const Group& group)
{
    const auto communicator = transport.communicator(group);
    constexpr std::int64_t kElements = 4 * 3 * 5 * 7 * 8; // divisible by every number of ranks up to 8
    constexpr std::int64_t kBytes = kElements * 4;
    const int n = communicator->size();
    const std::int64_t part = kElements / n;
    Values data(kElements, 1.0F);
    Values other(kElements);
    // Summed over the group by a collective of its own, after the call under test.
    const auto sentByAll = [&](const std::function<void()>& call) {
        call();
        float sent = static_cast<float>(communicator->lastSent().count()); // exact below 2^24
        communicator->allReduce(&sent, 1, DType::Fp32);
        return static_cast<std::int64_t>(sent);
    };
    const auto own = [&](const std::function<void()>& call) {
        call();
        return communicator->lastSent().count();
    };
    const std::int64_t ring = kBytes / n * (n - 1);
    EXPECT_EQ(own([&] { communicator->allGather(data.data(), other.data(), part * 4); }), ring);
    EXPECT_EQ(own([&] { communicator->reduceScatter(data.data(), other.data(), part, DType::Fp32); }), ring);
    EXPECT_EQ(own([&] { communicator->allReduce(data.data(), kElements, DType::Fp32); }), 2 * ring);
    EXPECT_EQ(own([&] { communicator->allToAll(data.data(), other.data(), part * 4); }), ring);
    const std::int64_t whole = kBytes * (n - 1);
    EXPECT_EQ(sentByAll([&] { communicator->broadcast(data.data(), kBytes, 0); }), whole);
    EXPECT_EQ(sentByAll([&] { communicator->reduce(data.data(), kElements, DType::Fp32, n - 1); }), whole);
    EXPECT_EQ(own([&] { communicator->barrier(); }), 0);
    EXPECT_EQ(own([&] { communicator->allGather(data.data(), other.data(), 0); }), 0);
    // An indivisible number of elements: what all ranks send together is the same to the byte.
    EXPECT_EQ(sentByAll([&] { communicator->allReduce(data.data(), 1013, DType::Fp32); }), 2 * 1013 * 4 * (n - 1));
}

} // namespace shardwright
