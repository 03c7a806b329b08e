#pragma once

// Which stretches of a compiled schedule, and which segments of it, are alike: those run once from each state of the
// clocks. A stretch is a layer's pass, with what is issued meanwhile.

#include <cstdint>
#include <map>
#include <vector>

#include "planner/readers/time_form.hpp"

namespace shardwright {

class TimeStretches {
public:
    /// `layerStarts`: items at which a layer's pass begins, in order.
    TimeStretches(TimeForm& form, const std::vector<std::uint32_t>& layerStarts);
    void find();

private:
    using Signature = std::vector<std::int64_t>;

    void cut(TimeForm::Node& node, bool blocksHost);
    void addStretch(std::uint32_t first, std::uint32_t end, bool blocksHost);
    void setProgram(const TimeForm::Stretch& stretch, const std::vector<std::int32_t>& inputs, bool blocksHost,
                    TimeForm::StretchKind& kind) const;
    bool blocksHost(const TimeForm::SegmentForm& segment) const;
    void findOutputs(const TimeForm::SegmentForm& segment);
    void setOutputs();
    void makeMemos();
    void nameSegment(TimeForm::SegmentForm& segment);

    TimeForm& m_form;
    const std::vector<std::uint32_t>& m_layerStarts;
    std::map<Signature, std::uint32_t> m_kinds;
    std::map<Signature, std::uint32_t> m_segmentKinds;
    std::vector<std::int64_t> m_stretchOf; // by item; -1: none
    std::vector<bool> m_asked;             // by item: its end is asked for outside its stretch
};

} // namespace shardwright
