#include "executor/engine/updates.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

#include <fmt/format.h>

#include "executor/elements.hpp"
#include "executor/engine/optimizer.hpp"

namespace shardwright {

namespace {

constexpr double kNormMargin = 1e-6; // torch/nn/utils/clip_grad.py adds it to the norm

/// Elements of a parameter buffer that stand in another buffer too.
struct Located {
    std::int64_t parameterAt = 0;
    std::int64_t count = 0;
    BufferId buffer = -1;
    std::int64_t at = 0;
};

/// The one that holds element `at`, and how many from there on; nothing where none does. `located` is sorted.
std::optional<Located> find(const std::vector<Located>& located, std::int64_t at)
{
    auto next = std::upper_bound(located.begin(), located.end(), at,
                                 [](std::int64_t value, const Located& each) { return value < each.parameterAt; });
    if (next == located.begin())
        return std::nullopt;
    const Located& found = *--next;
    const std::int64_t into = at - found.parameterAt;
    if (into >= found.count)
        return std::nullopt;
    return Located{at, found.count - into, found.buffer, found.at + into};
}

/// Where the next of them begins behind `at`; `end` where none does before it.
std::int64_t nextFrom(const std::vector<Located>& located, std::int64_t at, std::int64_t end)
{
    const auto next = std::upper_bound(located.begin(), located.end(), at, [](std::int64_t value, const Located& each) {
        return value < each.parameterAt;
    });
    return next == located.end() ? end : std::min(end, next->parameterAt);
}

void sortByParameter(std::vector<Located>& located)
{
    std::sort(located.begin(), located.end(),
              [](const Located& left, const Located& right) { return left.parameterAt < right.parameterAt; });
}

} // namespace

Updates::Updates(const ExecutablePlan& plan, const OptimizerSettings& settings, Buffers& buffers, Mover& mover,
                 Recorder& recorder, Transport& transport)
    : m_plan(plan), m_settings(settings), m_buffers(buffers), m_mover(mover), m_recorder(recorder),
      m_transport(transport), m_parameters(listParameters(plan.model))
{
}

void Updates::clip(const Action& action, std::span<const BufferId> reads, std::span<const BufferId> writes)
{
    double squares = 0;
    for (const BufferId buffer : reads.empty() ? writes : reads) {
        const TensorView view = m_buffers.view(buffer);
        for (const Piece& piece : m_buffers.held(buffer)->pieces)
            squares += squaresOf(view.as<std::byte>() + bytesOf(piece.at, view.dtype).count(), view.dtype, piece.count);
    }
    if (action.group >= 0) {
        // Groups beside this one hold the same parts: replicas.
        const Group& group = m_plan.schedule.sizes.groups[static_cast<std::size_t>(action.group)];
        const double replicas = static_cast<double>(m_transport.ranks()) / static_cast<double>(group.ranks);
        squares = m_transport.sum(squares) / replicas;
        m_recorder.scalar(Bytes(sizeof(double)));
    }
    const double limit = m_plan.training.gradientClipping.value_or(0);
    const double factor = limit / (std::sqrt(squares) + kNormMargin);
    if (limit <= 0 || factor >= 1)
        return;
    for (const BufferId buffer : writes) {
        const TensorView view = m_buffers.view(buffer);
        scaleElements(view.data, view.dtype, view.elements, factor);
        m_buffers.touch(buffer);
    }
}

void Updates::stretch(BufferId parameter, std::span<const BufferId> gradients, std::span<const BufferId> moments,
                      Steps& steps) const
{
    const Held& target = *m_buffers.held(parameter);
    std::vector<Located> gradientsAt;
    for (const BufferId gradient : gradients)
        for (const Run& run : common(*m_buffers.held(gradient), target))
            gradientsAt.push_back({run.to, run.count, gradient, run.from});
    sortByParameter(gradientsAt);
    const int momentCount = momentsOf(m_plan.training.optimizer);
    std::vector<Located> momentsAt[2];
    for (int which = 0; which < momentCount; ++which) {
        for (const BufferId moment : moments)
            for (const Run& run : common(target, *m_buffers.held(moment), which))
                momentsAt[which].push_back({run.from, run.count, moment, run.to});
        sortByParameter(momentsAt[which]);
    }
    for (const Piece& piece : target.pieces) {
        const NamedParameter& tensor = m_parameters[static_cast<std::size_t>(piece.tensor)];
        if (!tensor.trainable)
            continue;
        for (std::int64_t done = 0; done < piece.count;) {
            Stretch next;
            next.parameter = parameter;
            next.parameterAt = piece.at + done;
            next.count = piece.count - done;
            next.decays = tensor.shape.size() >= 2;
            if (!gradients.empty()) {
                const auto gradient = find(gradientsAt, next.parameterAt);
                if (!gradient) { // another action's
                    done = nextFrom(gradientsAt, next.parameterAt, piece.at + piece.count) - piece.at;
                    continue;
                }
                next.gradient = gradient->buffer;
                next.gradientAt = gradient->at;
                next.count = std::min(next.count, gradient->count);
            }
            for (int which = 0; which < momentCount; ++which) {
                const auto moment = find(momentsAt[which], next.parameterAt);
                if (!moment)
                    throw std::logic_error(
                        fmt::format("the optimizer step of \"{}\" finds no moment of {} from element {} on",
                                    m_buffers.nameOf(parameter), tensor.name, piece.first + done));
                next.moment[which] = moment->buffer;
                next.momentAt[which] = moment->at;
                next.count = std::min(next.count, moment->count);
            }
            steps.stretches.push_back(next);
            done += next.count;
        }
    }
}

void Updates::stretchMoments(std::span<const BufferId> gradients, std::span<const BufferId> moments, Steps& steps) const
{
    for (const BufferId gradient : gradients)
        for (const BufferId moment : moments)
            for (const Run& run : common(*m_buffers.held(gradient), *m_buffers.held(moment), 0)) {
                Stretch next;
                next.gradient = gradient;
                next.gradientAt = run.from;
                next.moment[0] = moment;
                next.momentAt[0] = run.to;
                next.count = run.count;
                steps.stretches.push_back(next);
            }
}

Updates::Steps Updates::stepsOf(std::span<const BufferId> reads, std::span<const BufferId> writes) const
{
    std::vector<BufferId> parameters;
    std::vector<BufferId> moments;
    for (const BufferId buffer : writes) {
        const Held* held = m_buffers.held(buffer);
        if (held != nullptr && held->content.quantity == Quantity::Parameters)
            parameters.push_back(buffer);
        else if (held != nullptr && held->content.quantity == Quantity::Moments)
            moments.push_back(buffer);
    }
    std::stable_sort(parameters.begin(), parameters.end(), [this](BufferId left, BufferId right) {
        return bitsOf(m_buffers.shape(left).dtype) > bitsOf(m_buffers.shape(right).dtype);
    });
    Steps steps;
    if (parameters.empty())
        stretchMoments(reads, moments, steps);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const Held& held = *m_buffers.held(parameters[i]);
        std::int64_t elements = 0;
        for (const Piece& piece : held.pieces)
            elements += piece.count;
        std::vector<Cast> casts;
        for (std::size_t exact = 0; exact < i; ++exact) {
            const std::int64_t shared = elementsOf(common(*m_buffers.held(parameters[exact]), held));
            elements -= shared;
            if (shared > 0)
                casts.push_back({parameters[exact], parameters[i]});
        }
        if (elements == 0) {
            steps.casts.insert(steps.casts.end(), casts.begin(), casts.end());
            continue;
        }
        if (!casts.empty())
            throw std::logic_error(fmt::format("the optimizer step writes only some elements of \"{}\" twice",
                                               m_buffers.nameOf(parameters[i])));
        stretch(parameters[i], reads, moments, steps);
    }
    return steps;
}

void Updates::update(const Action& action, std::span<const BufferId> reads, std::span<const BufferId> writes,
                     std::int64_t step)
{
    auto known = m_steps.find(&action);
    if (known == m_steps.end())
        known = m_steps.emplace(&action, stepsOf(reads, writes)).first;
    const auto place = [this](BufferId buffer, std::int64_t at, std::int64_t count) -> std::byte* {
        if (buffer < 0)
            return nullptr;
        const TensorView view = m_buffers.view(buffer);
        if (at + count > view.elements) // it has come to hold something else since the first step
            throw std::logic_error(fmt::format("the optimizer step leaves \"{}\" of {} elements",
                                               m_buffers.nameOf(buffer), view.elements));
        return view.as<std::byte>() + bytesOf(at, view.dtype).count();
    };
    for (const Stretch& each : known->second.stretches) {
        OptimizerRun run;
        run.parameter = place(each.parameter, each.parameterAt, each.count);
        run.gradient = place(each.gradient, each.gradientAt, each.count);
        if (each.parameter >= 0)
            run.parameterType = m_buffers.shape(each.parameter).dtype;
        if (each.gradient >= 0)
            run.gradientType = m_buffers.shape(each.gradient).dtype;
        for (int which = 0; which < 2; ++which)
            if (each.moment[which] >= 0) {
                run.moment[which] = place(each.moment[which], each.momentAt[which], each.count);
                run.momentType[which] = m_buffers.shape(each.moment[which]).dtype;
            }
        run.count = each.count;
        run.decays = each.decays;
        stepElements(run, m_plan.training.optimizer, m_settings, step);
    }
    for (const BufferId buffer : writes)
        m_buffers.touch(buffer);
    for (const Cast& cast : known->second.casts)
        m_mover.move(std::span(&cast.from, 1), std::span(&cast.to, 1), false);
}

} // namespace shardwright
