#pragma once

// What the memory of a GPU is divided into wherever it is drawn: the categories of tensors, what the caching allocator
// holds beyond them, and what is outside the tensors.

#include <string_view>
#include <vector>

#include "core/plan.hpp"
#include "planner/report/stacked_bar.hpp"

namespace shardwright {

/// Index of the part that draws a category: that of Category, but what stays over a step (optimizer states) stands
/// below what comes and goes (gradients), so that stacks side by side can be compared. Two more parts follow.
constexpr std::size_t partOf(Category category)
{
    switch (category) {
    case Category::OptimizerStates: return static_cast<std::size_t>(Category::Gradients);
    case Category::Gradients: return static_cast<std::size_t>(Category::OptimizerStates);
    default: return static_cast<std::size_t>(category);
    }
}
constexpr std::size_t kCachedPart = kCategoryCount;
constexpr std::size_t kOverheadPart = kCategoryCount + 1;
constexpr std::size_t kMemoryPartCount = kCategoryCount + 2;

/// How each part is drawn.
const std::vector<Part>& memoryParts();
std::string_view memoryPartName(std::size_t part);

/// The parts of plan.gpu.peakUsed, in bytes.
std::vector<double> usedStack(const Plan& plan);

/// The allocated bytes of a point of the curve; the last two parts are 0.
std::vector<double> allocatedStack(const CategoryBytes& byCategory);

/// "P parameters  M master parameters ..." for the parts that any of `stacks` has, in lines of at most style.width.
std::string memoryLegend(const OutputStyle& style, const std::vector<std::vector<double>>& stacks);

} // namespace shardwright
