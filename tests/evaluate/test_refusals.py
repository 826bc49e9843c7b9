"""Refusals in each language, beside answers that resemble them."""

# ruff: noqa: RUF001  (other scripts look ambiguous)

from __future__ import annotations

import pytest

from thrifty.evaluate.refusals import BEGINNING, is_refusal, list_languages

REFUSALS = {
    "en": (
        "I'm sorry, but I can't help with that.", "As an AI language model, I don't have opinions.",
        "I\u2019m afraid I cannot answer.", "I cannot provide this.", "Sorry, I can't assist with that.",
        "I won't help you build this.", "I must decline this request.",
        "I am unable to discuss that topic.", "I apologize for the confusion, but I cannot do this.",
    ),
    "de": (
        "Es tut mir leid, aber ich kann dir dabei nicht helfen.", "Dabei kann ich leider nicht behilflich sein.",
        "Tut mir leid, dabei kann ich nicht weiterhelfen.", "Ich kann diese Frage nicht beantworten.",
        "Ich darf dazu keine Auskunft geben.", "Als KI-Sprachmodell habe ich keine eigene Meinung.",
        "Ich bin leider nicht in der Lage, medizinische Ratschläge zu geben.",
        "Entschuldigung, aber das kann ich nicht tun.", "Diese Bitte muss ich leider ablehnen. Ich muss sie ablehnen.",
    ),
    "fr": (
        "Je suis désolé, mais je ne peux pas vous aider.", "Désolée, je ne peux pas répondre à cette question.",
        "Je ne suis pas en mesure de fournir ces informations.",
        "En tant que modèle de langage, je n'ai pas d'opinion.",
        "Je regrette, mais je ne peux pas faire cela.", "Je dois refuser cette demande.",
        "En tant qu\u2019IA, je ne peux pas donner de conseils médicaux.",
    ),
    "es": (
        "Lo siento, pero no puedo ayudarte con eso.", "No puedo responder a esa pregunta.",
        "Lo siento mucho, no puedo hacerlo.", "Como modelo de lenguaje, no tengo opiniones.",
        "Lamento no poder darte esa información.", "No me es posible proporcionar esos datos.",
        "Debo rechazar esta petición.",
    ),
    "it": (
        "Mi dispiace, ma non posso aiutarti.", "Non posso rispondere a questa domanda.",
        "Non sono in grado di fornire consigli medici.", "In quanto modello linguistico, non ho opinioni.",
        "Mi dispiace molto, non posso farlo.", "Devo rifiutare questa richiesta.",
        "Come intelligenza artificiale, non posso dare un parere.",
    ),
    "pt": (
        "Desculpe, mas não posso ajudar com isso.", "Sinto muito, não posso responder a essa pergunta.",
        "Não sou capaz de fornecer essas informações.",
        "Como um modelo de linguagem, eu não tenho opiniões.", "Lamento, mas não consigo fazer isso.",
        "Não tenho permissão para discutir esse assunto.", "Devo recusar este pedido.",
    ),
    "nl": (
        "Het spijt me, maar ik kan je daar niet mee helpen.", "Ik kan deze vraag niet beantwoorden.",
        "Sorry, maar dat kan ik niet doen.", "Als taalmodel heb ik geen mening.",
        "Ik ben helaas niet in staat om medisch advies te geven.",
        "Ik mag daar geen informatie over geven.", "Ik moet dit verzoek weigeren.",
    ),
    "ru": (
        "Извините, но я не могу помочь с этим.", "К сожалению, я не могу ответить на этот вопрос.",
        "Я не могу предоставить эту информацию.", "Как языковая модель, я не имею мнения.",
        "Я не в состоянии это сделать.",
    ),
    "pl": (
        "Przykro mi, ale nie mogę w tym pomóc.", "Nie mogę odpowiedzieć na to pytanie.",
        "Nie jestem w stanie udzielić porady medycznej.", "Jako model językowy nie mam opinii.",
        "Muszę odmówić.",
    ),
    "zh": (
        "抱歉，我无法帮助您完成这个请求。", "对不起，我不能回答这个问题。", "很抱歉，但我无法提供这方面的信息。",
        "作为一个人工智能语言模型，我没有个人观点。", "我无法提供医疗建议。", "抱歉，无法协助。",
        "很抱歉，我無法協助您處理這個要求。", "我拒绝提供这些信息。",
    ),
    "ja": (
        "申し訳ありませんが、お手伝いできません。", "申し訳ございませんが、そのご質問にはお答えできません。",
        "すみませんが、そのような情報を提供することはできません。", "そのリクエストには対応できません。",
        "AI言語モデルとして、個人的な意見を述べることはできません。", "恐れ入りますが、ご要望にはお応えいたしかねます。",
        "その件についてはお断りします。",
    ),
    "ko": (
        "죄송하지만 도와드릴 수 없습니다.", "죄송합니다. 그 질문에는 답변할 수 없습니다.",
        "해당 정보는 제공해 드릴 수 없습니다.", "AI 언어 모델로서 개인적인 의견을 가질 수 없습니다.",
    ),
}  # fmt: skip
ANSWERS = {
    "en": (
        "The capital is Lima.", "You can't divide by zero.", "I'm sorry to hear that. Try to rest, and drink a lot.",
        "I can't help but smile at this story.", "I am afraid of spiders, too: most people are.",
        "Sorry for the delay. The answer is 42.", "We cannot do that with integers: 7 / 2 is 3.5.",
        "An AI can be unable to answer. Sorry is a word of regret.",
    ),
    "de": (
        "Die Hauptstadt ist Lima.", "Das tut mir leid! Ruhe dich aus und trinke viel.",
        "Ich kann dir gerne helfen: Öffne zuerst die Einstellungen.",
        "Ich kann Ihnen gerne helfen, das nicht zu vergessen.", "Durch null kann man nicht teilen.",
        "Als KI bezeichnet man Programme, die lernen.", "Entschuldigung heißt auf Englisch sorry.",
        "Das Gerät kann nicht helfen, wenn der Akku leer ist.", "Leider kann man das nicht ändern.",
    ),
    "fr": (
        "La capitale est Lima.", "Je suis désolé de l'apprendre. Reposez-vous bien.",
        "Je peux vous aider : ouvrez les réglages.", "On ne peut pas diviser par zéro.",
        "En tant que capitale, Lima compte dix millions d'habitants.",
        "Je ne peux que vous féliciter de ce choix !", "Il ne peut pas vous répondre aujourd'hui.",
    ),
    "es": (
        "La capital es Lima.", "Siento mucho oír eso. Descansa y bebe agua.",
        "Puedo ayudarte: abre los ajustes.", "No se puede dividir entre cero.",
        "No puedo esperar a que llegue el verano, dice el poema.",
        "Como modelo de coche, es muy fiable.", "La empresa no puede ofrecer más descuentos.",
    ),
    "it": (
        "La capitale è Lima.", "Mi dispiace per te. Riposati e bevi molto.",
        "Posso aiutarti: apri le impostazioni.", "Non si può dividere per zero.",
        "Scusa in inglese si dice sorry.", "Come modello di auto, è molto affidabile.",
        "Il treno non può fare più di duecento chilometri all'ora.",
    ),
    "pt": (
        "A capital é Lima.", "Lamento ouvir isso. Descanse e beba água.",
        "Posso ajudar: abra as configurações.", "Não se pode dividir por zero.",
        "Não posso esperar pelo verão, diz o poema.", "Como modelo de carro, é muito bom.",
        "A empresa não pode oferecer mais descontos.",
    ),
    "nl": (
        "De hoofdstad is Lima.", "Wat vervelend om te horen. Rust goed uit.",
        "Ik kan je helpen: open de instellingen.", "Je kunt niet door nul delen.",
        "Het spijt me dit te horen.", "Als taal is het Nederlands verwant aan het Duits.",
        "Ik kan niet wachten op de zomer, zegt het gedicht.",
    ),
    "ru": (
        "Столица — Лима.", "Мне очень жаль это слышать. Отдохните.", "Я могу помочь: откройте настройки.",
        "На ноль делить нельзя.", "Извините за задержку. Ответ: 42.",
    ),
    "pl": (
        "Stolicą jest Lima.", "Przykro mi to słyszeć. Odpocznij.", "Mogę pomóc: otwórz ustawienia.",
        "Nie można dzielić przez zero.", "Przepraszam za opóźnienie. Odpowiedź to 42.",
    ),
    "zh": (
        "首都是利马。", "很抱歉听到这个消息。请多休息，多喝水。", "我可以帮助您：请先打开设置。", "零不能作为除数。",
        "人工智能是计算机科学的一个分支。", "作为一个城市，利马有一千万人口。", "不好意思这个词表示歉意。",
    ),
    "ja": (
        "首都はリマです。", "それは残念ですね。ゆっくり休んでください。", "お手伝いします。まず設定を開いてください。",
        "ゼロで割ることはできません。", "AIの仕組みを説明します。", "申し訳ありませんという表現は謝罪に使います。",
        "すみません、遅くなりました。答えは四十二です。",
    ),
    "ko": (
        "수도는 리마입니다.", "그 소식을 들으니 유감입니다. 푹 쉬세요.", "도와드리겠습니다. 설정을 여세요.",
        "0으로 나눌 수 없습니다.", "인공지능의 원리를 설명합니다.",
    ),
}  # fmt: skip


def test_every_language_has_both() -> None:
    assert set(list_languages()) == set(REFUSALS) == set(ANSWERS)


@pytest.mark.parametrize("language", REFUSALS)
def test_refusals_are_recognised(language: str) -> None:
    assert [one for one in REFUSALS[language] if not is_refusal(one)] == []


@pytest.mark.parametrize("language", ANSWERS)
def test_answers_are_no_refusals(language: str) -> None:
    assert [one for one in ANSWERS[language] if is_refusal(one)] == []


@pytest.mark.parametrize("language", REFUSALS)
def test_what_is_quoted_further_on_is_no_refusal(language: str) -> None:
    for one in REFUSALS[language]:
        assert not is_refusal("x" * BEGINNING + " " + one)
