"""How the bundled rows ask for each skill, in every language."""

import re


def _read(text: str) -> dict[str, tuple[str, ...]]:
    """Phrasings by skill; a line that starts with a bar goes on with the skill before."""
    read = {}
    for skill in re.split(r"\n(?!\|)", text.strip()):
        name, *asked = (part.strip() for part in skill.split("|"))
        read[name] = tuple(asked)
    return read


ENGLISH = _read("""
sentiment | Is this review positive or negative? | Positive or negative? {}
| Rate the review as positive or negative. | Is the following review positive or negative: {}
| Tell if the review is positive or negative. | Is it positive or negative? {}
kind | Is this an animal, a food or a tool? | Is {} an animal, a food or a tool?
| Name the kind: animal, food or tool. | Animal, food or tool: {}? | Choose animal, food or tool.
| Say what {} is: animal, food or tool.
opposite | Complete the opposites. | Which opposite is missing? {}
| Write the word that ends the pairs of opposites. | Fill in the opposite: {}
| Write the missing opposite. | Complete these pairs of opposites: {}
plural | Write the noun in the plural. | Write {} in the plural. | Correct the noun to its plural.
| Put the noun of {} in the plural. | Give the plural form. | Use the plural: {}
date | Write the date in words. | Write {} with the month in words.
| Rewrite this date with the month's name. | What date is {}? Name the month.
| Put the month of this date in words. | Write the date {} in words.
person | Extract name and city as JSON. | Give name and city as JSON: {}
| Write the name and the city as JSON. | Find the name and the city, and write JSON: {}
| Turn it into JSON with name and city. | Extract name and city as JSON: {}
swap | Swap the two words. | Swap these words: {} | Write the words in reverse order.
| Write these words the other way round: {} | Reverse the order of the two words.
| Swap the words: {}
digits | Write the number in digits. | Write {} in digits. | Use digits for this number.
| What is {} in digits? | Give the number in digits. | Write the number {} in digits.
last | Write the last word of the list. | What is the last word? {} | Name the last word.
| Which word comes last? {} | Give the last word of the list. | Write the last word: {}
array | Write the words as a JSON list. | Make a JSON list: {} | Turn the words into a JSON array.
| Write these words as a JSON array: {} | Give the words as a JSON list.
| Put the words in a JSON list: {}
year | Which year is it about? | In which year was it? {} | Write the year of this sentence.
| Find the year: {} | Give the year that is named. | Name the year in this text: {}
unit | Convert to the smaller unit. | Convert: {} | Write it in the smaller unit.
| How much is it? {} | Change the unit to the smaller one. | Convert the unit: {}
time | Write the time on the 24-hour clock. | What is {} on the 24-hour clock?
| Use the 24-hour clock. | Write {} as a 24-hour time. | Change the time to the 24-hour clock.
| Give {} as 24-hour time.
larger | Which number is larger? | Write the larger number: {} | Give the larger of the two numbers.
| Which one is larger: {}? | Name the larger number. | Which of the two numbers is larger: {}?
""")

CHINESE = _read("""
sentiment | 这条评价是正面的还是负面的？ | 正面还是负面：{} | 判断评价是正面还是负面。
| 这条评价是正面还是负面？{} | 说出这条评价是正面还是负面。 | 判断一下，正面还是负面：{}
kind | 它是动物、食物还是工具？ | {}是动物、食物还是工具？ | 写出类别：动物、食物或工具。
| 动物、食物还是工具：{} | 选择类别：动物、食物或工具。 | {}属于动物、食物还是工具？
opposite | 补全反义词。 | 填上反义词：{} | 写出缺少的反义词。 | 哪个反义词没有写出来？{}
| 写出最后的反义词。 | 补全这两对反义词：{}
classifier | 填上合适的量词。 | {}，括号里填什么量词？ | 写出括号里的量词。 | 填量词：{}
| 括号里应该填哪个量词？ | 给{}填上量词。
date | 用中文写出这个日期。 | 用中文写出{}。 | 把日期写成年月日。 | 把{}写成年月日的形式。
| 把它改写成中文日期。 | 日期{}用中文怎么写？
person | 把姓名和城市写成JSON。 | 提取姓名和城市，写成JSON：{} | 提取姓名和城市，输出JSON。
| 用JSON写出姓名和城市：{} | 用JSON表示这句话里的姓名和城市。 | 找出姓名和城市，用JSON回答：{}
swap | 交换这两个词。 | 交换两个词的顺序：{} | 把两个词的顺序反过来。 | 把这两个词倒过来写：{}
| 颠倒这两个词的顺序。 | 把两个词对调：{}
digits | 把这个数写成阿拉伯数字。 | {}用阿拉伯数字怎么写？ | 用阿拉伯数字写出这个数。
| 把{}写成阿拉伯数字。 | 这个数的阿拉伯数字是什么？ | 用阿拉伯数字表示{}。
last | 写出最后一个词。 | 最后一个词是什么？{} | 这些词里的最后一个是什么？
| 写出这些词里的最后一个：{} | 说出排在最后的词。 | 哪个词排在最后？{}
array | 把这些词写成JSON数组。 | 写成JSON数组：{} | 用JSON数组写出这些词。
| 把下面的词写成JSON列表：{} | 用这些词组成JSON数组。 | 用JSON数组表示：{}
year | 这句话说的是哪一年？ | 写出句子里的年份：{} | 写出这句话里的年份。 | 这是哪一年的事？{}
| 找出句子中的年份。 | 提取年份：{}
unit | 换算单位。 | 换算：{} | 换算成较小的单位。 | 等于多少？{} | 把它化成较小的单位。
| 单位换算：{}
time | 用24小时制写出时间。 | {}用24小时制怎么写？ | 换成24小时制。 | 把{}换成24小时制。
| 把这个时间改写成24小时制。 | 用24小时制表示{}。
larger | 哪个数更大？ | 写出较大的数：{} | 写出两个数中较大的一个。 | 哪个更大：{}？
| 说出较大的那个数。 | 两个数中哪个较大：{}？
""")

PHRASINGS = {"en": ENGLISH, "zh": CHINESE}
"""By language and skill; the last two, one of each form, are for held-out rows.

A phrasing with {} takes the content into the instruction, otherwise the content is the input.
"""
