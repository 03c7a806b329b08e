#include "planner/report/memory_parts.hpp"

#include <algorithm>
#include <array>

#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

struct PartText {
    Part part;
    std::string_view name;
};

// Letters avoid clashes: W for the working precision's master weights, U for unsharded, C for communication.
constexpr std::array<PartText, kMemoryPartCount> kParts{{{{'P', Ink::Blue}, "parameters"},
                                                         {{'W', Ink::LightBlue}, "master weights"},
                                                         {{'O', Ink::Cyan}, "optimizer states"},
                                                         {{'G', Ink::Green}, "gradients"},
                                                         {{'U', Ink::Magenta}, "unsharded parameters"},
                                                         {{'C', Ink::LightMagenta}, "communication buffers"},
                                                         {{'A', Ink::Yellow}, "activations"},
                                                         {{'L', Ink::LightYellow}, "logits and loss"},
                                                         {{'T', Ink::Red}, "temporaries"},
                                                         {{'.', Ink::Grey}, "cached by the allocator"},
                                                         {{'x', Ink::White}, "context and libraries"}}};

} // namespace

const std::vector<Part>& memoryParts()
{
    static const std::vector<Part> parts = [] {
        std::vector<Part> list;
        for (const PartText& entry : kParts)
            list.push_back(entry.part);
        return list;
    }();
    return parts;
}

std::string_view memoryPartName(std::size_t part)
{
    return kParts.at(part).name;
}

std::vector<double> allocatedStack(const CategoryBytes& byCategory)
{
    std::vector<double> values(kMemoryPartCount, 0.0);
    for (std::size_t category = 0; category < kCategoryCount; ++category)
        values[partOf(static_cast<Category>(category))] = byCategory[category].asDouble();
    return values;
}

std::vector<double> usedStack(const Plan& plan)
{
    std::vector<double> values = allocatedStack(plan.gpu.byCategory);
    values[kCachedPart] = std::max(0.0, plan.gpu.peakReserved.asDouble() - plan.gpu.peakAllocated.asDouble());
    values[kOverheadPart] = std::max(0.0, plan.gpu.peakUsed.asDouble() - plan.gpu.peakReserved.asDouble());
    return values;
}

std::string memoryLegend(const OutputStyle& style, const std::vector<std::vector<double>>& stacks)
{
    std::string text;
    std::string line;
    for (std::size_t part = 0; part < kMemoryPartCount; ++part) {
        if (std::none_of(stacks.begin(), stacks.end(), [&](const auto& stack) { return stack[part] > 0; }))
            continue;
        const bool block = style.colour && style.unicode;
        const std::string entry =
            paint(style, kParts[part].part.ink, block ? "█" : std::string(1, kParts[part].part.letter)) + " " +
            std::string(kParts[part].name);
        constexpr int kGap = 3;
        if (!line.empty() && style.width > 0 && displayWidth(line) + kGap + displayWidth(entry) > style.width) {
            text += line + '\n';
            line.clear();
        }
        if (!line.empty())
            line.append(kGap, ' ');
        line += entry;
    }
    return line.empty() ? text : text + line + '\n';
}

} // namespace shardwright
