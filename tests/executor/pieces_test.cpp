// What two buffers have in common, against laying every element out one by one.

#include "executor/engine/pieces.hpp"

#include <map>
#include <tuple>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace shardwright {
namespace {

std::vector<NamedParameter> parametersOf(const std::vector<std::vector<std::int64_t>>& shapes)
{
    std::vector<NamedParameter> parameters;
    for (const std::vector<std::int64_t>& shape : shapes) {
        NamedParameter parameter;
        parameter.shape = shape;
        parameter.numel = 1;
        for (const std::int64_t dimension : shape)
            parameter.numel *= dimension;
        parameters.push_back(parameter);
    }
    return parameters;
}

Content contentOf(Cut cut, std::int64_t parts, std::int64_t multiple, std::vector<std::int32_t> tensors, bool allParts)
{
    Content content;
    content.layout = {std::move(tensors), cut, parts, multiple, allParts};
    return content;
}

TEST(Pieces, NeighboursInTensorAndBufferAreOne)
{
    // Two tensors of 5 and 3 elements, flat over 3 parts of 3: parts end within the tensors, the gathered whole does
    // not.
    const auto parameters = parametersOf({{5}, {3}});
    const Held whole = heldBy(contentOf(Cut::Flat, 3, 1, {0, 1}, true), parameters, 0, 2);
    ASSERT_EQ(whole.elements, 9);
    ASSERT_EQ(whole.pieces.size(), 2U);
    EXPECT_NE(whole.whole(0, 5), nullptr);
    EXPECT_EQ(whole.whole(1, 3)->at, 5);
    const Held part = heldBy(contentOf(Cut::Flat, 3, 1, {0, 1}, false), parameters, 1, 2);
    ASSERT_EQ(part.pieces.size(), 2U); // elements 3, 4 of the first, 0 of the second
    EXPECT_EQ(part.whole(0, 5), nullptr);
    const auto runs = common(part, whole);
    ASSERT_EQ(runs.size(), 2U);
    EXPECT_EQ(std::tuple(runs[0].from, runs[0].to, runs[0].count), std::tuple(0, 3, 2));
    EXPECT_EQ(std::tuple(runs[1].from, runs[1].to, runs[1].count), std::tuple(2, 5, 1));
}

TEST(Pieces, APartOfFewerTensorsIsTheSmallerOne)
{
    // 5 and 4 elements over three ranks: parts of 2 and 2, of which the last holds 1 and 0.
    const auto parameters = parametersOf({{5}, {4}});
    const Held all = heldBy(contentOf(Cut::EachFlat, 3, 1, {0, 1}, false), parameters, 2, 2);
    const Held second = heldBy(contentOf(Cut::EachFlat, 3, 1, {1}, false), parameters, 2, 2);
    EXPECT_EQ(smallerPartition(all, second), &second);
    EXPECT_EQ(smallerPartition(second, all), &second);
    EXPECT_EQ(second.filled, 2); // padding
    EXPECT_TRUE(second.pieces.empty());
    EXPECT_EQ(smallerPartition(all, heldBy(contentOf(Cut::EachFlat, 2, 1, {1}, false), parameters, 1, 2)), nullptr);
    EXPECT_EQ(smallerPartition(all, heldBy(contentOf(Cut::Flat, 3, 1, {1}, false), parameters, 2, 2)), nullptr);
    EXPECT_EQ(smallerPartition(second, heldBy(contentOf(Cut::EachFlat, 3, 1, {0}, false), parameters, 2, 2)), nullptr);
}

TEST(Pieces, RowsOfAllPartsDoNotStandWholeUnlessAlone)
{
    const auto parameters = parametersOf({{4, 2}, {4, 3}});
    EXPECT_EQ(heldBy(contentOf(Cut::EachRows, 2, 1, {0, 1}, true), parameters, 0, 2).whole(0, 8), nullptr);
    EXPECT_NE(heldBy(contentOf(Cut::EachRows, 2, 1, {0}, true), parameters, 0, 2).whole(0, 8), nullptr);
}

TEST(Pieces, MomentsStandBehindEachOther)
{
    const auto parameters = parametersOf({{4}});
    Content content = contentOf(Cut::Flat, 2, 1, {0}, false);
    content.quantity = Quantity::Moments;
    const Held moments = heldBy(content, parameters, 1, 2);
    EXPECT_EQ(moments.elements, 4);
    content.quantity = Quantity::Parameters;
    const Held parameter = heldBy(content, parameters, 1, 2);
    const auto second = common(parameter, moments, 1);
    ASSERT_EQ(second.size(), 1U);
    EXPECT_EQ(std::tuple(second[0].from, second[0].to, second[0].count), std::tuple(0, 2, 2));
}

/// (tensor, element) -> place in the buffer.
using Places = std::map<std::tuple<std::int32_t, std::int64_t>, std::int64_t>;

Places placesOf(const Content& content, const std::vector<NamedParameter>& parameters, std::int64_t part)
{
    Places places;
    for (const Extent& extent : extentsOf(content.layout, parameters, part))
        for (std::int64_t i = 0; i < extent.count; ++i)
            places[{extent.tensor, extent.first + i}] = extent.at + i;
    return places;
}

RC_GTEST_PROP(Pieces, CommonRunsAreWhatBothHold, ())
{
    const int tensors = *rc::gen::inRange(1, 5);
    std::vector<std::vector<std::int64_t>> shapes;
    std::vector<std::int32_t> order;
    for (int i = 0; i < tensors; ++i) {
        shapes.push_back({*rc::gen::inRange<std::int64_t>(1, 9), *rc::gen::inRange<std::int64_t>(1, 4)});
        order.push_back(i);
    }
    const auto parameters = parametersOf(shapes);
    const auto content = [&] {
        const Cut cut = *rc::gen::element(Cut::Whole, Cut::Flat, Cut::EachFlat, Cut::EachRows);
        const std::int64_t parts = cut == Cut::Whole ? 1 : *rc::gen::inRange<std::int64_t>(1, 6);
        return contentOf(cut, parts, *rc::gen::element<std::int64_t>(1, 2, 8), order, *rc::gen::arbitrary<bool>());
    };
    const Content from = content();
    const Content to = content();
    const std::int64_t fromPart = *rc::gen::inRange<std::int64_t>(0, from.layout.parts);
    const std::int64_t toPart = *rc::gen::inRange<std::int64_t>(0, to.layout.parts);
    const Places source = placesOf(from, parameters, fromPart);
    std::map<std::int64_t, std::int64_t> expected; // place in `to` -> place in `from`
    for (const auto& [element, place] : placesOf(to, parameters, toPart))
        if (const auto found = source.find(element); found != source.end())
            expected[place] = found->second;
    std::map<std::int64_t, std::int64_t> actual;
    for (const Run& run : common(heldBy(from, parameters, fromPart, 2), heldBy(to, parameters, toPart, 2)))
        for (std::int64_t i = 0; i < run.count; ++i)
            RC_ASSERT(actual.emplace(run.to + i, run.from + i).second);
    RC_ASSERT(actual == expected);
}

} // namespace
} // namespace shardwright
