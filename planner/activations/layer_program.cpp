#include "planner/activations/layer_program.hpp"

#include <algorithm>
#include <cassert>

namespace shardwright {

LayerProgram::LayerProgram() : m_classes(kFirstOwnSlot, -1), m_policy(kFirstOwnSlot, false) {}

int LayerProgram::tensor(BufferClassId bufferClass)
{
    m_classes.push_back(bufferClass);
    m_policy.push_back(false);
    return static_cast<int>(m_classes.size()) - 1;
}

void LayerProgram::setBoundary(BufferClassId bufferClass)
{
    for (int slot = 0; slot < kFirstOwnSlot; ++slot)
        setSlotClass(slot, bufferClass);
}

ProgramStep& ProgramStep::kernels(int count, std::initializer_list<int> again)
{
    m_work.kernels = count;
    for (const int slot : again)
        if (slot >= 0)
            m_work.again.push_back(static_cast<std::int16_t>(slot));
    return *this;
}

ProgramStep LayerProgram::step(int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                               std::initializer_list<int> holds) const
{
    ProgramStep step;
    step.m_module = step.m_work.module = module;
    step.m_uses = existing(reads);
    step.m_makes = existing(makes);
    step.m_work.reads.assign(step.m_uses.begin(), step.m_uses.end());
    step.m_work.writes.assign(step.m_makes.begin(), step.m_makes.end());
    const bool makesNothing = makes.size() > 0 && std::all_of(step.m_makes.begin(), step.m_makes.end(), [&](int slot) {
                                  return std::find(step.m_uses.begin(), step.m_uses.end(), slot) != step.m_uses.end();
                              });
    if (makesNothing && module < 0) // a cast or copy that the case at hand does not need
        step.m_work.kind = WorkKind::Nothing;
    for (const int slot : existing(holds))
        step.m_uses.push_back(slot);
    return step;
}

ProgramStep& LayerProgram::forward(int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                                   std::initializer_list<int> holds)
{
    m_forward.push_back(step(module, reads, makes, holds));
    return m_forward.back();
}

ProgramStep& LayerProgram::backward(int module, std::initializer_list<int> reads, std::initializer_list<int> makes,
                                    std::initializer_list<int> holds)
{
    m_backward.push_back(step(module, reads, makes, holds));
    return m_backward.back();
}

ProgramStep& LayerProgram::backwardHalf(Half half, int module, std::initializer_list<int> reads,
                                        std::initializer_list<int> makes, std::initializer_list<int> holds)
{
    ProgramStep& added = backward(module, reads, makes, holds);
    added.m_work.half = half;
    return added;
}

void LayerProgram::forwardCollective(int collective, std::initializer_list<int> reads, std::initializer_list<int> makes,
                                     Beside beside)
{
    ProgramStep& added = forward(-1, reads, makes).is(WorkKind::Nothing);
    added.m_collective = collective;
    added.m_beside = beside;
}

void LayerProgram::backwardCollective(int collective, std::initializer_list<int> reads,
                                      std::initializer_list<int> makes, Beside beside)
{
    ProgramStep& added = backward(-1, reads, makes).is(WorkKind::Nothing);
    added.m_collective = collective;
    added.m_beside = beside;
}

std::vector<int> LayerProgram::existing(std::initializer_list<int> wanted) const
{
    std::vector<int> slots;
    for (const int slot : wanted)
        if (slot >= 0 && classOf(slot) >= 0)
            slots.push_back(slot);
    return slots;
}

bool LayerProgram::usedInBackward(int slot) const
{
    return std::any_of(m_backward.begin(), m_backward.end(), [slot](const ProgramStep& step) {
        return std::find(step.m_uses.begin(), step.m_uses.end(), slot) != step.m_uses.end();
    });
}

/// The events of running `steps`: makes what is not yet present, drops everything not in `keeps` after its last use.
/// `runs`: which steps compute; the others' results are there already or nobody needs them.
ProgramPass LayerProgram::passOf(const Steps& steps, const std::vector<bool>& keeps, const std::vector<bool>& present,
                                 const std::vector<bool>& runs) const
{
    std::vector<std::size_t> lastTouch(slots(), 0);
    std::vector<bool> alive = present;
    const auto leftOut = [&](std::size_t i) { return !runs[i] && steps[i].leftOutWhole(); };
    std::vector<bool> touched(slots(), false); // by any step, whether it runs or not
    for (std::size_t i = 0; i < steps.size(); ++i) {
        const bool counts = !leftOut(i) || steps[i].m_collective >= 0;
        for (const std::vector<int>* those : {&steps[i].m_uses, &steps[i].m_makes})
            for (const int slot : *those) {
                touched[static_cast<std::size_t>(slot)] = true;
                if (counts)
                    lastTouch[static_cast<std::size_t>(slot)] = i;
            }
    }
    ProgramPass pass;
    std::vector<int> running(slots(), -1);      // by slot: the stage of the collective that still makes it
    std::vector<std::pair<int, int>> beingRead; // slots that products read beside the collective, and its stage
    for (std::size_t i = 0; i < steps.size(); ++i) {
        const ProgramStep& step = steps[i];
        if (leftOut(i))
            continue; // its result is there, or nobody needs it
        std::vector<int> waitsFor;
        const auto reads = [&](int slot) {
            return step.m_module >= 0 && std::find(step.m_uses.begin(), step.m_uses.end(), slot) != step.m_uses.end();
        };
        for (auto each = beingRead.begin(); each != beingRead.end();) {
            if (reads(each->first)) {
                ++each;
                continue;
            }
            waitsFor.push_back(each->second);
            each = beingRead.erase(each);
        }
        for (const int slot : step.m_uses) {
            int& stage = running[static_cast<std::size_t>(slot)];
            if (stage >= 0 && pass[static_cast<std::size_t>(stage)].beside == Beside::Readers && reads(slot))
                beingRead.emplace_back(slot, stage);
            else if (stage >= 0)
                waitsFor.push_back(stage);
            stage = -1;
        }
        if (step.m_beside == Beside::Writer && !pass.empty())
            pass.back().apart = true;
        const bool another = step.m_module >= 0 && !pass.empty() &&
                             (pass.back().module != step.m_module || pass.back().half != step.m_work.half);
        const bool collective = step.m_collective >= 0 || (!pass.empty() && pass.back().collective >= 0);
        if (pass.empty() || another || collective || !waitsFor.empty())
            pass.push_back({step.m_module,
                            {},
                            {},
                            step.m_work.half,
                            step.m_collective,
                            step.m_beside,
                            false,
                            std::move(waitsFor)});
        if (step.m_beside != Beside::Nothing)
            running[static_cast<std::size_t>(step.result())] = static_cast<int>(pass.size()) - 1;
        std::vector<SlotEvent>& events = pass.back().events;
        for (const int slot : step.m_makes) {
            if (alive[static_cast<std::size_t>(slot)])
                continue;
            alive[static_cast<std::size_t>(slot)] = true;
            events.push_back({static_cast<std::int16_t>(slot), true});
        }
        if (runs[i] && step.m_work.kind != WorkKind::Nothing) {
            pass.back().work.push_back(step.m_work);
            pass.back().work.back().step = static_cast<int>(i);
            pass.back().work.back().eventsBefore = events.size();
        }
        for (std::size_t slot = 0; slot < slots(); ++slot)
            if (alive[slot] && !keeps[slot] && lastTouch[slot] <= i) {
                if (!touched[slot] && i + 1 < steps.size())
                    continue; // never read in this pass: goes at its end
                alive[slot] = false;
                events.push_back({static_cast<std::int16_t>(slot), false});
            }
    }
    if (m_fused)
        fuse(pass, steps, keeps);
    return pass;
}

/// Neighbours bound by memory become one kernel: it reads each tensor once and writes those that outlive it.
void LayerProgram::fuse(ProgramPass& pass, const Steps& steps, const std::vector<bool>& keeps) const
{
    const auto fusable = [&](const StepWork& work) {
        return work.kind == WorkKind::ByModule &&
               (work.module < 0 || !m_products[static_cast<std::size_t>(work.module)]);
    };
    const auto contains = [](const std::vector<std::int16_t>& slots, std::int16_t slot) {
        return std::find(slots.begin(), slots.end(), slot) != slots.end();
    };
    StepWork* chain = nullptr;
    std::vector<StepWork*> chains;
    std::vector<int> ends; // of each chain: its last step
    for (ProgramStage& stage : pass) {
        std::vector<StepWork> kept;
        kept.reserve(stage.work.size()); // the chain's place stays where it is
        for (StepWork& work : stage.work) {
            if (!fusable(work)) {
                kept.push_back(std::move(work));
                chain = nullptr;
                continue;
            }
            if (chain == nullptr) {
                kept.push_back(work);
                kept.back().half = Half::Whole;
                kept.back().kernels = 1;
                kept.back().reads.clear();
                kept.back().writes.clear();
                kept.back().again.clear();
                chain = &kept.back();
                chains.push_back(chain);
                ends.push_back(0);
            }
            for (const std::int16_t slot : work.reads)
                if (!contains(chain->reads, slot) && !contains(chain->writes, slot))
                    chain->reads.push_back(slot);
            chain->writes.insert(chain->writes.end(), work.writes.begin(), work.writes.end());
            ends.back() = work.step;
        }
        stage.work = std::move(kept);
    }
    for (std::size_t i = 0; i < chains.size(); ++i) {
        std::vector<std::int16_t>& writes = chains[i]->writes;
        const auto dies = [&](std::int16_t slot) {
            return !keeps[static_cast<std::size_t>(slot)] &&
                   std::none_of(steps.begin() + ends[i] + 1, steps.end(),
                                [&](const ProgramStep& later) { return contains(later.m_work.reads, slot); });
        };
        writes.erase(std::remove_if(writes.begin(), writes.end(), dies), writes.end());
    }
}

/// Which steps of the forward recomputation runs: what is present is not made again.
std::vector<bool> LayerProgram::recomputed(const std::vector<bool>& saved, const std::vector<bool>& present,
                                           RecomputeRange range) const
{
    std::vector<bool> wanted = saved;
    std::vector<bool> runs(m_forward.size(), false);
    bool neededLater = range == RecomputeRange::Whole;
    for (std::size_t i = m_forward.size(); i-- > 0;) {
        const ProgramStep& step = m_forward[i];
        const auto missing = [&](int slot) { return !present[static_cast<std::size_t>(slot)]; };
        const auto wantedMissing = [&](int slot) { return missing(slot) && wanted[static_cast<std::size_t>(slot)]; };
        // Kernels that make nothing change all that they read; collectives the first of it.
        const bool inPlace = step.m_makes.empty() && step.leftOutWhole();
        const std::vector<int>& made = inPlace && step.m_collective < 0 ? step.m_uses : step.m_makes;
        const bool makesMissing = made.empty() || std::any_of(made.begin(), made.end(), missing);
        const bool needed = inPlace && step.m_collective >= 0 ? wantedMissing(step.result())
                                                              : std::any_of(made.begin(), made.end(), wantedMissing);
        neededLater |= needed;
        runs[i] = range == RecomputeRange::OnlyNeeded ? needed : neededLater && makesMissing;
        if (runs[i])
            for (const std::int16_t slot : step.m_work.reads)
                wanted[static_cast<std::size_t>(slot)] = true;
    }
    return runs;
}

void LayerProgram::compile(KeepMode mode, RecomputeRange range, bool handsOn)
{
    const std::size_t count = slots();
    std::vector<bool> saved(count, false);
    for (std::size_t slot = 0; slot < count; ++slot)
        saved[slot] = usedInBackward(static_cast<int>(slot));
    std::vector<bool> made(count, false);
    for (const ProgramStep& step : m_forward)
        for (const int slot : step.m_makes)
            made[static_cast<std::size_t>(slot)] = true;
    std::vector<bool> present(count, false);
    present[kInput] = classOf(kInput) >= 0;

    std::vector<bool> keeps(count, false);
    keeps[kOutput] = true;
    for (std::size_t slot = kFirstOwnSlot; slot < count; ++slot)
        keeps[slot] =
            made[slot] && ((mode == KeepMode::Keep && saved[slot]) || (mode == KeepMode::Policy && m_policy[slot]));
    keeps[kInput] = mode != KeepMode::Keep || saved[kInput];
    // Where a part of the layer is checkpointed by itself, that part's input is kept, not the layer's.
    if (mode == KeepMode::Policy && range == RecomputeRange::OnlyNeeded && !saved[kInput]) {
        const std::vector<bool> runs = recomputed(saved, keeps, range);
        keeps[kInput] = false;
        for (std::size_t i = 0; i < runs.size(); ++i)
            if (runs[i] && std::count(m_forward[i].m_uses.begin(), m_forward[i].m_uses.end(), kInput) > 0)
                keeps[kInput] = true;
    }
    m_keepsInput = keeps[kInput];
    if (m_heldSlot >= 0)
        keeps[static_cast<std::size_t>(m_heldSlot)] = true;
    const std::vector<bool> allForward(m_forward.size(), true);
    m_forwardPass = passOf(m_forward, keeps, present, allForward);

    std::vector<bool> afterForward = keeps;
    afterForward[kOutput] = false; // belongs to the next layer now
    afterForward[kInput] = m_keepsInput && classOf(kInput) >= 0;
    if (mode != KeepMode::Keep) {
        std::vector<bool> keepsAgain = saved;
        keepsAgain[kInput] = afterForward[kInput];
        keepsAgain[kOutput] = handsOn && classOf(kOutput) >= 0;
        for (std::size_t slot = kFirstOwnSlot; slot < count; ++slot)
            keepsAgain[slot] = made[slot] && (saved[slot] || afterForward[slot]);
        m_recomputePass = passOf(m_forward, keepsAgain, afterForward, recomputed(saved, afterForward, range));
        afterForward = keepsAgain;
        afterForward[kOutput] = false; // the next layer's input
    }
    afterForward[kGradOutput] = classOf(kGradOutput) >= 0;
    std::vector<bool> keepsNothing(count, false);
    keepsNothing[static_cast<std::size_t>(gradientSlot())] = true;
    if (m_heldSlot >= 0)
        keepsNothing[static_cast<std::size_t>(m_heldSlot)] = true;
    m_backwardPass = passOf(m_backward, keepsNothing, afterForward, std::vector<bool>(m_backward.size(), true));
}

} // namespace shardwright
