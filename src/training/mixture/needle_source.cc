// {"kind": "needles"}: facts hidden in a haystack, and asked for: the tasks of rwkvx needle, and facts in
// other words. As many questions as there is room for: each is worth more than the haystack.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "retrieval/fact_styles.h"
#include "training/mixture/hay.h"

namespace rwkvx {
namespace {

constexpr const char* kFacts = "facts";
/// Adds "a.", "a and b.", "a, b, and c." to an answer. Values are things from number `first_thing` on.
void add_list(const std::vector<std::string>& values, int64_t first_thing, MarkedText& answer) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) {
      answer.add(values.size() == 2 ? " and " : i + 1 == values.size() ? ", and " : ", ", TokenRole::answer);
    }
    answer.add(values[i], TokenRole::answer, {first_thing + static_cast<int64_t>(i)});
  }
  answer.add(".", TokenRole::answer);
}

/// How one sample speaks.
struct Manner {
  FactStyle style;
  NeedleValue value = NeedleValue::digits5;
  std::string separator = " ";
  int64_t values = 1;
  bool pass_key = false;  ///< the first key is the pass key
};

struct Fact {
  std::string key;
  std::vector<Sample> statements;  ///< one for each value
  Sample question;
  size_t statement_size() const {
    size_t size = 0;
    for (const Sample& statement : statements) size += statement.size();
    return size;
  }
};

/// Something in the haystack.
struct Event {
  size_t place = 0;  ///< tokens of the haystack before it
  const Sample* what = nullptr;
};

class NeedleSource final : public SampleSource {
 public:
  NeedleSource(Fields& fields, const SourceSetup& setup)
      : tokenizer_(setup.tokenizer),
        hay_(fields, setup, "noise"),
        distractors_(fields.range("distractors", {0, 4}, 0, kNeedleKeys / 4)),
        questions_(fields.range("questions", {1, 8}, 1, kNeedleKeys / 4)),
        intro_(fields.number("intro", 0.5, 0, 1)),
        spread_(fields.number("spread", 0.25, 0, 1)),
        between_(fields.number("between_sentences", 0.75, 0, 1)),
        similar_(fields.number("similar", 0, 0, 1)),
        full_(fields.shares("full", {0.2, 0.8})) {
    std::vector<std::string> known = needle_task_names();
    known.emplace_back(kFacts);
    for (const std::string& name : fields.texts("tasks", {kFacts})) {
      if (std::find(known.begin(), known.end(), name) == known.end())
        fields.refuse("tasks", fmt::format("a list of {}", fmt::join(known, ", ")));
      Task task;
      task.name = name;
      if (name != kFacts) task.known = needle_task(name);
      // The longest of what may be drawn. Styles differ little; so many draws have seen them all.
      Random random(0);
      for (int i = 0; i < (task.known ? 20 : 400); ++i) {
        const Manner manner = manner_of(task, random);
        std::set<std::string> taken;
        const Fact fact = make_fact(manner, manner.style.keys == FactKeys::pairs ? "ancient-lantern" : "", {},
                                    taken, random);
        task.least = std::max(task.least, fact.statement_size() + fact.question.size());
      }
      tasks_.push_back(std::move(task));
    }
  }

  size_t least() const override {
    return std::min_element(tasks_.begin(), tasks_.end(),
                            [](const Task& a, const Task& b) { return a.least < b.least; })
        ->least;
  }

  void make(uint64_t, size_t size, Random& random, Sample& sample) const override {
    std::vector<const Task*> fitting;
    for (const Task& task : tasks_) {
      if (task.least <= size) fitting.push_back(&task);
    }
    const Task& task = *fitting[random.next() % fitting.size()];
    Manner manner;
    std::vector<Fact> facts;
    std::set<std::string> taken;
    size_t own = 0, asked = 0;  // tokens that are no haystack; questions
    // The first fact is there and is asked for. `least` is what draws took; one of them may take more.
    for (int tries = 0; facts.empty(); ++tries) {
      manner = manner_of(task, random);
      taken.clear();
      Fact fact = make_fact(manner, manner.pass_key ? kPassKey : "", {}, taken, random);
      own = fact.statement_size() + fact.question.size();
      if (own <= size) facts.push_back(std::move(fact));
      if (tries == 1000) fail("no fact of task {} fits into {} tokens", task.name, size);
    }
    asked = 1;

    // Facts and questions, as many as drawn and as there is room for.
    const double full = full_.low + (full_.high - full_.low) * random.uniform();
    const auto room = static_cast<size_t>(full * static_cast<double>(size));
    const auto wanted_facts =
        static_cast<size_t>(std::min(1 + draw(distractors_, random), fact_key_count(manner.style.keys) / 2));
    const auto drawn_questions = static_cast<size_t>(draw(questions_, random));
    size_t wanted_questions = drawn_questions;
    while (facts.size() < wanted_facts) {
      Fact fact = make_fact(manner, "", facts, taken, random);
      if (asked < wanted_questions && own + fact.statement_size() + fact.question.size() <= room) {
        own += fact.question.size();
        ++asked;
      } else {
        wanted_questions = asked;  // those that are asked for come first
      }
      if (own + fact.statement_size() > room) break;
      own += fact.statement_size();
      facts.push_back(std::move(fact));
    }
    // More questions than facts ask again.
    std::vector<size_t> again;
    while (wanted_facts <= facts.size() && asked + again.size() < drawn_questions) {
      const size_t fact = random.next() % facts.size();
      if (own + facts[fact].question.size() > room) break;
      own += facts[fact].question.size();
      again.push_back(fact);
    }
    const std::vector<TokenId> intro = tokenizer_.encode(manner.style.text.intro);
    const bool introduced = random.uniform() < intro_ && own + intro.size() < size;
    if (introduced) {
      own += intro.size();
      sample.append(intro, TokenRole::text);
    }

    // Where they are.
    const std::vector<TokenId> hay = hay_.draw(size - own, manner.separator, random);
    const bool between = random.uniform() < between_;
    const auto place = [&](size_t least) {
      const auto at =
          static_cast<size_t>(draw({static_cast<int64_t>(least), static_cast<int64_t>(hay.size())}, random));
      return between && at < hay.size() ? std::max(least, hay_.sentence_end_before(hay, at)) : at;
    };
    std::vector<Event> events, last;
    for (size_t i = 0; i < facts.size(); ++i) {
      const Fact& fact = facts[i];
      std::vector<size_t> places;
      for (size_t v = 0; v < fact.statements.size(); ++v) places.push_back(place(0));
      std::sort(places.begin(), places.end());  // the answer lists them as they come
      for (size_t v = 0; v < fact.statements.size(); ++v) events.push_back({places[v], &fact.statements[v]});
      if (i >= asked) continue;
      if (random.uniform() < spread_) {
        events.push_back({place(places.back()), &fact.question});
      } else {
        last.push_back({hay.size(), &fact.question});
      }
    }
    for (const size_t fact : again) last.push_back({hay.size(), &facts[fact].question});
    std::stable_sort(events.begin(), events.end(),
                     [](const Event& a, const Event& b) { return a.place < b.place; });
    for (size_t i = last.size(); i > 1; --i) std::swap(last[i - 1], last[random.next() % i]);
    events.insert(events.end(), last.begin(), last.end());
    size_t at = 0;
    for (const Event& event : events) {
      sample.append(std::span(hay).subspan(at, event.place - at), TokenRole::text);
      sample.append(*event.what);
      at = event.place;
    }
    sample.append(std::span(hay).subspan(at), TokenRole::text);
  }

 private:
  struct Task {
    std::string name;
    std::optional<NeedleTask> known;  ///< none: facts in other words
    size_t least = 0;
  };

  Manner manner_of(const Task& task, Random& random) const {
    Manner manner;
    if (!task.known) {
      manner.style = draw_fact_style(random);
      const uint64_t kind = random.next() % 8;
      manner.value = kind == 0 ? NeedleValue::uuid : kind < 4 ? NeedleValue::number7 : NeedleValue::digits5;
      manner.separator = random.next() % 2 == 0 ? " " : "\n";
      return manner;
    }
    const NeedleTask& known = *task.known;
    manner.pass_key = known.text.needle.find("{key}") == std::string::npos;
    manner.style = manner.pass_key ? passkey_style(known.text) : FactStyle{known.text, FactKeys::pairs};
    manner.value = known.value;
    manner.values = known.values;
    manner.separator = known.noise_separator;
    return manner;
  }

  /// One more beside `others`, with this key or one that is drawn.
  Fact make_fact(const Manner& manner, const std::string& key, std::span<const Fact> others,
                 std::set<std::string>& taken, Random& random) const {
    const int64_t first_thing = std::ssize(others) * manner.values;
    const auto fresh = [&](auto draw_one) {
      std::string drawn = draw_one();
      while (!taken.insert(drawn).second) drawn = draw_one();
      return drawn;
    };
    Fact fact;
    const auto drawn_key = [&] {
      if (manner.style.keys != FactKeys::pairs) return draw_fact_key(manner.style.keys, random);
      return draw_key_beside(others, &Fact::key, similar_, random);
    };
    fact.key = key.empty() ? fresh(drawn_key) : key;
    taken.insert(fact.key);
    std::vector<std::string> values;
    for (int64_t i = 0; i < manner.values; ++i) {
      values.push_back(fresh([&] { return draw_value(manner.value, random); }));
      Sample statement;
      MarkedText()
          .add_statement(manner.style.text.needle, fact.key, values.back(), first_thing + i)
          .append_to(statement, tokenizer_);
      fact.statements.push_back(std::move(statement));
    }
    const std::string question = fill_in(manner.style.text.question, fact.key, "");
    const bool space = question.ends_with(' ') || question.ends_with('\n');
    MarkedText answer;
    if (!space) answer.add(" ", TokenRole::answer);
    add_list(values, first_thing, answer);
    fact.question = question_and_answer(question, answer, tokenizer_);
    return fact;
  }

  const Tokenizer& tokenizer_;
  Hay hay_;
  IntRange distractors_, questions_;
  double intro_, spread_, between_, similar_;
  ShareRange full_;  // of a sample, that facts and questions may take
  std::vector<Task> tasks_;
};

}  // namespace

std::unique_ptr<SampleSource> make_needle_source(Fields& fields, const SourceSetup& setup) {
  return std::make_unique<NeedleSource>(fields, setup);
}

}  // namespace rwkvx
