#include "core/layout.hpp"

#include <map>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace shardwright {
namespace {

std::vector<NamedParameter> parametersOf(const std::vector<std::vector<std::int64_t>>& shapes)
{
    std::vector<NamedParameter> parameters;
    for (const auto& shape : shapes) {
        std::int64_t numel = 1;
        for (const std::int64_t dimension : shape)
            numel *= dimension;
        parameters.push_back({"t" + std::to_string(parameters.size()), shape, numel, 0, true});
    }
    return parameters;
}

TEST(Layout, FlatCutsAcrossTensors)
{
    const auto parameters = parametersOf({{2, 3}, {5}});
    Layout layout{{0, 1}, Cut::Flat, 4, 1, false};
    EXPECT_EQ(elementsOf(layout, parameters), 3); // 11 elements, padded to 12, four parts
    EXPECT_EQ(extentsOf(layout, parameters, 1), (std::vector<Extent>{{0, 3, 3, 0}}));
    EXPECT_EQ(extentsOf(layout, parameters, 3), (std::vector<Extent>{{1, 3, 2, 0}})); // one of padding behind
    layout.multiple = 2;                                                              // 16 elements
    EXPECT_EQ(extentsOf(layout, parameters, 1), (std::vector<Extent>{{0, 4, 2, 0}, {1, 0, 2, 2}}));
    EXPECT_TRUE(extentsOf(layout, parameters, 3).empty());
}

TEST(Layout, RowsAreCutAsDTensorCutsThem)
{
    const auto parameters = parametersOf({{5, 2}, {3}});
    const Layout layout{{0, 1}, Cut::EachRows, 4, 1, false};
    EXPECT_EQ(elementsOf(layout, parameters), 5); // two rows of two, one of one
    EXPECT_EQ(extentsOf(layout, parameters, 0), (std::vector<Extent>{{0, 0, 4, 0}, {1, 0, 1, 4}}));
    EXPECT_EQ(extentsOf(layout, parameters, 2), (std::vector<Extent>{{0, 8, 2, 0}, {1, 2, 1, 4}}));
    EXPECT_TRUE(extentsOf(layout, parameters, 3).empty());
}

TEST(Layout, AlignedTensorsBeginAtMultiples)
{
    const auto parameters = parametersOf({{2, 3}, {5}});
    Layout layout{{0, 1}, Cut::Flat, 2, 1, false};
    layout.align = 4; // the second begins at 8: 13 elements, padded to 14
    EXPECT_EQ(elementsOf(layout, parameters), 7);
    EXPECT_EQ(extentsOf(layout, parameters, 0), (std::vector<Extent>{{0, 0, 6, 0}}));
    EXPECT_EQ(extentsOf(layout, parameters, 1), (std::vector<Extent>{{1, 0, 5, 1}}));
}

TEST(Layout, RowsPaddedForFourAreCutInTwo)
{
    const auto parameters = parametersOf({{5, 2}, {3}}); // 8 and 4 rows
    const Layout half{{0, 1}, Cut::EachRows, 2, 2, false};
    EXPECT_EQ(elementsOf(half, parameters), 10);
    EXPECT_EQ(extentsOf(half, parameters, 1), (std::vector<Extent>{{0, 8, 2, 0}, {1, 2, 1, 8}}));
    const Layout whole{{0, 1}, Cut::EachRows, 1, 4, false};
    EXPECT_EQ(elementsOf(whole, parameters), 20);
    EXPECT_EQ(extentsOf(whole, parameters, 0), (std::vector<Extent>{{0, 0, 10, 0}, {1, 0, 3, 16}}));
}

TEST(Layout, EachFlatPadsEveryTensor)
{
    const auto parameters = parametersOf({{5}, {4}});
    Layout layout{{1, 0}, Cut::EachFlat, 2, 1, false};
    EXPECT_EQ(elementsOf(layout, parameters), 5);
    EXPECT_EQ(extentsOf(layout, parameters, 1), (std::vector<Extent>{{1, 2, 2, 0}, {0, 3, 2, 2}}));
    layout.allParts = true;
    EXPECT_EQ(elementsOf(layout, parameters), 10);
    EXPECT_EQ(extentsOf(layout, parameters, 0),
              (std::vector<Extent>{{1, 0, 2, 0}, {0, 0, 3, 2}, {1, 2, 2, 5}, {0, 3, 2, 7}}));
}

// csrc/quantization/swizzled_quantize.cu: for 2 nodes of 4 GPUs the eighths 0 1 2 3 4 5 6 7 become 0 4 1 5 2 6 3 7.
TEST(Layout, SwizzledPartsAreThoseOfAllNodesForOneGpu)
{
    const auto parameters = parametersOf({{4, 4}, {9}});
    Layout layout{{0}, Cut::Swizzled, 4, 2, true};
    EXPECT_EQ(elementsOf(layout, parameters), 16);
    std::vector<std::int64_t> firsts;
    for (const Extent& extent : extentsOf(layout, parameters, 0))
        firsts.push_back(extent.first / 2);
    EXPECT_EQ(firsts, (std::vector<std::int64_t>{0, 4, 1, 5, 2, 6, 3, 7}));
    layout.allParts = false;
    EXPECT_EQ(elementsOf(layout, parameters), 4);
    EXPECT_EQ(extentsOf(layout, parameters, 1), (std::vector<Extent>{{0, 2, 2, 0}, {0, 10, 2, 2}}));
    // Nine elements in eight pieces of two: the last ones are padding. Pieces of several tensors stand together.
    layout = {{0, 1}, Cut::Swizzled, 4, 2, false};
    EXPECT_EQ(extentsOf(layout, parameters, 0),
              (std::vector<Extent>{{0, 0, 2, 0}, {1, 0, 2, 2}, {0, 8, 2, 4}, {1, 8, 1, 6}}));
    EXPECT_EQ(elementsOf(layout, parameters), 8);
}

TEST(Layout, TensorsThatTouchAPartStandInItWhole)
{
    // 3 + 4 + 2 + 3 elements in two parts of 6: the first holds 3 of the second tensor's 4.
    const auto parameters = parametersOf({{3}, {4}, {2}, {3}});
    const Layout layout{{0, 1, 2, 3}, Cut::Touching, 2, 1, false};
    EXPECT_EQ(extentsOf(layout, parameters, 0), (std::vector<Extent>{{0, 0, 3, 0}, {1, 0, 4, 3}}));
    EXPECT_EQ(extentsOf(layout, parameters, 1), (std::vector<Extent>{{1, 0, 4, 0}, {2, 0, 2, 4}, {3, 0, 3, 6}}));
    EXPECT_EQ(elementsOf(layout, parameters), 9); // the second part's, whichever part a rank has
}

TEST(Layout, RoomIsTakenWhateverLiesInIt)
{
    const auto parameters = parametersOf({{3}, {4}});
    Layout layout{{1}, Cut::Whole, 1, 1, false};
    layout.room = 10;
    EXPECT_EQ(elementsOf(layout, parameters), 10);
    EXPECT_EQ(extentsOf(layout, parameters, 0), (std::vector<Extent>{{1, 0, 4, 0}}));
    layout.room = 3;
    EXPECT_EQ(elementsOf(layout, parameters), 4);
}

RC_GTEST_PROP(Layout, PartsHoldEveryElementOnceAndAllPartsAreThemInOrder, ())
{
    std::vector<std::vector<std::int64_t>> shapes(*rc::gen::inRange<std::size_t>(1, 6));
    for (auto& shape : shapes)
        shape = *rc::gen::container<std::vector<std::int64_t>>(*rc::gen::inRange<std::size_t>(1, 4),
                                                               rc::gen::inRange<std::int64_t>(1, 7));
    const auto parameters = parametersOf(shapes);
    Layout layout;
    for (std::size_t i = 0; i < parameters.size(); ++i)
        layout.tensors.push_back(static_cast<std::int32_t>(i));
    layout.cut = *rc::gen::element(Cut::Flat, Cut::EachFlat, Cut::EachRows);
    layout.parts = *rc::gen::inRange<std::int64_t>(1, 9);
    layout.multiple = *rc::gen::inRange<std::int64_t>(1, 4);
    layout.align = *rc::gen::inRange<std::int64_t>(1, 5);
    const std::int64_t length = elementsOf(layout, parameters);
    Layout whole = layout;
    whole.allParts = true;
    RC_ASSERT(elementsOf(whole, parameters) == length * layout.parts);

    std::map<std::pair<std::int32_t, std::int64_t>, int> held;
    std::vector<Extent> inOrder;
    for (std::int64_t part = 0; part < layout.parts; ++part) {
        std::int64_t end = 0;
        for (Extent extent : extentsOf(layout, parameters, part)) {
            RC_ASSERT(extent.at >= end);
            end = extent.at + extent.count;
            RC_ASSERT(end <= length);
            for (std::int64_t i = 0; i < extent.count; ++i)
                ++held[{extent.tensor, extent.first + i}];
            extent.at += part * length;
            inOrder.push_back(extent);
        }
    }
    RC_ASSERT(inOrder == extentsOf(whole, parameters, 0));
    std::size_t elements = 0;
    for (const NamedParameter& parameter : parameters)
        elements += static_cast<std::size_t>(parameter.numel);
    RC_ASSERT(held.size() == elements);
    for (const auto& [element, times] : held)
        RC_ASSERT(times == 1);
}

} // namespace
} // namespace shardwright
