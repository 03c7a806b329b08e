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

void LayerProgram::forward(int module, std::initializer_list<int> uses, std::initializer_list<int> makes)
{
    m_forward.push_back({module, existing(uses), existing(makes)});
}

void LayerProgram::backward(int module, std::initializer_list<int> uses, std::initializer_list<int> makes)
{
    m_backward.push_back({module, existing(uses), existing(makes)});
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
    return std::any_of(m_backward.begin(), m_backward.end(), [slot](const Step& step) {
        return std::find(step.uses.begin(), step.uses.end(), slot) != step.uses.end();
    });
}

/// The events of running `steps`: makes what is not yet present, drops everything not in `keeps` after its last use.
ProgramPass LayerProgram::passOf(const std::vector<Step>& steps, const std::vector<bool>& keeps,
                                 const std::vector<bool>& present) const
{
    std::vector<std::size_t> lastTouch(slots(), 0);
    std::vector<bool> alive = present;
    for (std::size_t i = 0; i < steps.size(); ++i) {
        for (const int slot : steps[i].uses)
            lastTouch[static_cast<std::size_t>(slot)] = i;
        for (const int slot : steps[i].makes)
            lastTouch[static_cast<std::size_t>(slot)] = i;
    }
    ProgramPass pass;
    for (std::size_t i = 0; i < steps.size(); ++i) {
        const Step& step = steps[i];
        if (pass.empty() || (step.module >= 0 && pass.back().module != step.module))
            pass.push_back({step.module, {}});
        std::vector<SlotEvent>& events = pass.back().events;
        for (const int slot : step.makes) {
            if (alive[static_cast<std::size_t>(slot)])
                continue;
            alive[static_cast<std::size_t>(slot)] = true;
            events.push_back({static_cast<std::int16_t>(slot), true});
        }
        for (std::size_t slot = 0; slot < slots(); ++slot)
            if (alive[slot] && !keeps[slot] && lastTouch[slot] <= i) {
                const bool touchedEver = std::any_of(steps.begin(), steps.end(), [&](const Step& s) {
                    const int id = static_cast<int>(slot);
                    return std::find(s.uses.begin(), s.uses.end(), id) != s.uses.end() ||
                           std::find(s.makes.begin(), s.makes.end(), id) != s.makes.end();
                });
                if (!touchedEver && i + 1 < steps.size())
                    continue; // never read in this pass: goes at its end
                alive[slot] = false;
                events.push_back({static_cast<std::int16_t>(slot), false});
            }
    }
    return pass;
}

void LayerProgram::compile(KeepMode mode)
{
    const std::size_t count = slots();
    std::vector<bool> saved(count, false);
    for (std::size_t slot = 0; slot < count; ++slot)
        saved[slot] = usedInBackward(static_cast<int>(slot));
    const auto made = [&](int slot) {
        return std::any_of(m_forward.begin(), m_forward.end(), [slot](const Step& step) {
            return std::find(step.makes.begin(), step.makes.end(), slot) != step.makes.end();
        });
    };
    std::vector<bool> present(count, false);
    present[kInput] = classOf(kInput) >= 0;

    std::vector<bool> keeps(count, false);
    keeps[kOutput] = true;
    m_keepsInput = mode != KeepMode::Keep || saved[kInput];
    keeps[kInput] = m_keepsInput;
    for (std::size_t slot = kFirstOwnSlot; slot < count; ++slot)
        keeps[slot] = made(static_cast<int>(slot)) &&
                      ((mode == KeepMode::Keep && saved[slot]) || (mode == KeepMode::Policy && m_policy[slot]));
    if (m_heldSlot >= 0)
        keeps[static_cast<std::size_t>(m_heldSlot)] = true;
    m_forwardPass = passOf(m_forward, keeps, present);

    std::vector<bool> afterForward = keeps;
    afterForward[kOutput] = false; // belongs to the next layer now
    afterForward[kInput] = m_keepsInput && classOf(kInput) >= 0;
    if (mode != KeepMode::Keep) {
        std::vector<bool> keepsAgain = saved;
        keepsAgain[kInput] = classOf(kInput) >= 0;
        keepsAgain[kOutput] = false;
        for (std::size_t slot = kFirstOwnSlot; slot < count; ++slot)
            keepsAgain[slot] = made(static_cast<int>(slot)) && (saved[slot] || afterForward[slot]);
        m_recomputePass = passOf(m_forward, keepsAgain, afterForward);
        afterForward = keepsAgain;
    }
    afterForward[kGradOutput] = classOf(kGradOutput) >= 0;
    std::vector<bool> keepsNothing(count, false);
    keepsNothing[kGradInput] = true;
    if (m_heldSlot >= 0)
        keepsNothing[static_cast<std::size_t>(m_heldSlot)] = true;
    m_backwardPass = passOf(m_backward, keepsNothing, afterForward);
}

} // namespace shardwright
