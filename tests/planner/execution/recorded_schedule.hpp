#pragma once

// Plays a recorded schedule on all ranks at once, in numbers, with no layers: parameters are counters of the steps that
// changed them, gradients are numbers that no two kernels share. So an element that was lost, summed twice, reduced
// over the wrong ranks, read before it was written or used after it grew old shows.

#include <memory>
#include <string>
#include <vector>

#include "core/model.hpp"
#include "core/schedule.hpp"
#include "core/training.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

/// A schedule to be checked, and what it is for.
struct RecordedSchedule {
    const Schedule& schedule;
    const Model& model;
    const Training& training;
    std::int64_t ranks = 1;
    std::size_t layerClasses = 0; // the first buffer classes: tensors of layers, which need no content
    int steps = 2;
};

/// What is wrong with it, in words; empty = nothing. Checked are
/// - sizes: a content's elements in its dtype make the bytes of its class; every buffer but layers' tensors has one;
/// - life: operands are live, and written before they are read;
/// - collectives: parts belong to the ranks of the group and make up the whole; payloads are the bytes that go over;
/// - kernels: a whole live copy of the newest weights in the compute dtype;
/// - the update: every element of every rank's part once, from the mean over all ranks of the sum over all micro-steps,
///   clipped once; afterwards every kept copy is new;
/// - repetition: what a segment or the step leaves behind pairs up with what it found.
std::vector<std::string> problemsOf(const RecordedSchedule& recorded);

/// Those of the schedule that a framework's rules record for an input.
std::vector<std::string> recordingProblems(const PlanInput& input);

} // namespace shardwright
