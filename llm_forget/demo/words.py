"""Word lists for invented people: names, places, organisations and things.

Towns, firms, schools, prizes, car makers and most family names are combined from parts. Given names are real names, grouped by
culture. A full name may belong to somebody by chance; no real person was used. All text is ASCII, so that no tokenizer falls back
to bytes for some of the people only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

# Beginnings whose sound and first letter disagree on "a" or "an".
_SPOKEN_VOWEL = ("hour", "heir", "honest", "honour")
_SPOKEN_CONSONANT = ("uni", "eu", "one", "use", "ute", "ewe")


@dataclass(frozen=True)
class Culture:
    """Names of one culture: given names of women and men, and family names."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    families: tuple[str, ...]


def with_article(noun: str) -> str:
    """A noun phrase with "a" or "an", chosen by sound: "an optician", "a union clerk", "an hourglass maker"."""
    word = noun.lower()
    vowel = word.startswith(_SPOKEN_VOWEL) or (word[0] in "aeiou" and not word.startswith(_SPOKEN_CONSONANT))
    return f"{'an' if vowel else 'a'} {noun}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(","))


def _joined(heads: str, tails: str) -> tuple[str, ...]:
    """Every head joined with every tail, as one word."""
    return tuple(head + tail for head, tail in product(heads.split(), tails.split()))


def _spaced(heads: tuple[str, ...], tails: tuple[str, ...]) -> tuple[str, ...]:
    """Every head with every tail, as two words."""
    return tuple(f"{head} {tail}" for head, tail in product(heads, tails))


CULTURES = (
    Culture(
        _words("""Agnes Beatrice Cecily Daphne Edith Flora Harriet Imogen Josephine Lettice Mabel Nell Olive Philippa
               Rosamund Sybil Tabitha Ursula Verity Winifred Bryony Clementine Dorothea Esme Georgina Hester"""),
        _words("""Alfred Barnaby Cedric Dunstan Edmund Fergus Gilbert Humphrey Jasper Lionel Montague Nigel Percival
               Quentin Rupert Silas Tobias Wilfred Ambrose Bertram Clement Ellis Gareth Hugo Leopold Miles"""),
        _joined(
            "Ash Thorn Wick Hather Marl Pem Hol Brack Cald Dun Elder Fen Gar Hask Kel Lang Mor Nether Oak Pen Rad Stan",
            "worth combe ley field croft stead mere wood shaw ridge lock well",
        ),
    ),
    Culture(
        _words("""Astrid Birgit Dagny Ebba Frida Gunilla Hedda Ingrid Jorunn Karin Liv Maren Nanna Oda Ragnhild Signe
               Solveig Thyra Ulla Vigdis Ylva Annika Elin Gro Hilde Sunniva"""),
        _words("""Anders Bjarne Eskil Fredrik Gunnar Halvard Ivar Jens Knut Leif Magnus Nils Olav Peder Ragnar Sverre
               Torsten Ulf Vidar Arvid Egil Frode Henrik Kjell Lasse Sigurd"""),
        _joined(
            "Lind Sol Ek Nor Gran Ask Hede Lund Sjo Sand Vester Oster Myr Fur Alm Tor Hav Nord Bjork",
            "qvist strand dal gaard vik holm stad heim sten rud vang nes",
        ),
    ),
    Culture(
        _words("""Adelheid Brigitte Dorte Elfriede Frauke Gisela Hannelore Irmgard Jutta Katrin Liesel Mechthild Nele
               Ottilie Renate Sabine Traudl Ulrike Veronika Walburga Anneliese Beate Edda Greta Heike Lotte"""),
        _words("""Albrecht Bernd Detlef Eberhard Florian Gerhard Helmut Ingo Jochen Konrad Lothar Matthias Norbert
               Oskar Ruprecht Siegfried Theo Uwe Volker Wendelin Anselm Bastian Falk Gregor Hartmut Jobst"""),
        _joined(
            "Brand Stein Wald Kron Lichten Roth Feld Hagen Oster Wester Reh Vogel Weid Grun Salz Hollen Tann Birken",
            "hauser bach brecht huber lauer meier stetter thaler reuter kamp brunner egger",
        ),
    ),
    Culture(
        _words("""Adele Bernadette Capucine Delphine Eloise Florence Genevieve Heloise Isaure Juliette Lucienne Margaux
               Noemie Odette Perrine Sidonie Solange Therese Victoire Yvonne Agathe Blanche Colette Elodie
               Manon Oceane"""),
        _words("""Antoine Baptiste Corentin Damien Etienne Fabrice Gaspard Hippolyte Jerome Lucien Maxence Olivier
               Pascal Quentin Raphael Sylvain Thibault Valentin Xavier Yannick Aurelien Benoit Cyprien
               Emile Gilles Leon"""),
        _joined(
            "Beau Clair Roche Val Font Haute Belle Cor Gran Mar Bois Chan Lam Sau Tour Ver Per Lau",
            "mont court champ rieux vigne lieu ronde lignac villiers breuil neuf sec",
        ),
    ),
    Culture(
        _words("""Adela Beatriz Carmela Dolores Elvira Fatima Graciela Ines Jimena Leonor Marisol Noelia Olalla Pilar
               Rocio Soledad Teresa Ximena Yolanda Amparo Catarina Estela Graca Iria Luisa Paloma"""),
        _words("""Alonso Benito Cristobal Duarte Esteban Fabian Gonzalo Hernan Ignacio Joaquim Leandro Mateus Nuno
               Octavio Ramiro Salvador Tomas Vasco Xoan Anibal Baltasar Caetano Emilio Gaspar Lisandro Rogelio"""),
        _joined(
            "Quint Sarm Bald Ord Ferr Car Vald Mir Sal Pal Nov Torr Cald Mor Zald Arr Ber Gald Lob Pint",
            "ela ado eira ales ero illo osa anza ondo uela edo amar",
        ),
    ),
    Culture(
        _words("""Alessia Bianca Camilla Donata Elettra Fiorenza Giuditta Ilaria Letizia Mirella Nicoletta Ornella
               Piera Raffaella Serena Tiziana Viola Allegra Benedetta Chiara Domitilla Ersilia Ginevra
               Livia Marzia Norma"""),
        _words("""Achille Bruno Claudio Dario Ettore Fausto Gianluca Ivano Lorenzo Massimo Nevio Orlando Pietro
               Renzo Saverio Tullio Umberto Vito Zeno Amedeo Corrado Elio Furio Guido Livio Ottavio"""),
        _joined(
            "Bell Cast Mont Fior Ross Capp Mar Guard Sant Torr Vall Verr Lam Pell Gall Brand Corr Ferr Scar Tadd",
            "ini elli onti etti azzi aldi ucci ardi egna ori esi",
        ),
    ),
    Culture(
        _words("""Anezka Bojana Danica Dragana Elzbieta Galina Halina Ivana Jadranka Katarzyna Ljubica Milena Nadia
               Oksana Petra Radka Slavica Tatjana Vesna Zdenka Zofia Bozena Dorota Irina Lenka Mirjana"""),
        _words("""Andrej Bogdan Casimir Damir Emil Franjo Goran Hrvoje Igor Janko Kamil Lubomir Marek Nikola Ondrej
               Pavel Radek Stanko Tadeusz Vaclav Wojtek Zdenek Boris Dusan Jakub Miroslav"""),
        _joined(
            "Dobr Mirk Vel Stan Zor Kost Bog Rad Lub Jar Kral Mlad Pavl Brank Vuk Sedl",
            "ovic enko anek owicz anic ejko inac onek",
        ),
    ),
    Culture(
        _words("""Anahit Eteri Gayane Hasmik Ia Keti Lusine Manana Maro Mzia Narine Nino Salome Shushan Siranush Sopio
               Tamar Tamta Tsisana Varduhi Zabel Arpine Ekaterine Khatuna Lilit Nana"""),
        _words("""Aram Archil Armen Avtandil Bagrat Davit Gagik Giorgi Grigor Hrant Irakli Karapet Lasha Levan Mkrtich
               Nodar Otar Revaz Ruben Sevak Tengiz Tornike Vahan Vazha Zaza Zurab"""),
        _joined(
            "Lomi Beri Kvara Gelo Tsere Maisu Chale Noni Arve Gogi Jani Shenge Tabi Vasha Zura", "dze shvili kidze lia"
        )
        + _joined("Arak Vard Nazar Zakar Mant Tavad Melik Aslan Sahak Hovn", "yan unyan atyan"),
    ),
    Culture(
        _words("""Aylin Belgin Canan Defne Elif Fadime Gulsen Hulya Ipek Jale Kadriye Leman Melike Nermin Oya Pelin
               Reyhan Selma Tulay Ulku Yasemin Zehra Asuman Berrin Dilara Nesrin"""),
        _words("""Adnan Baris Cemal Deniz Emre Ferhat Gokhan Hasan Ilker Kerem Levent Murat Nejat Okan Poyraz Rifat
               Serkan Tarik Umut Volkan Yavuz Zeki Bulent Cengiz Haluk Orhun"""),
        _joined(
            "Ak Kara Demir Gok Yesil Ay Tas Bal Kur Er Oz Sari Bay Tun", "soy kaya tekin alp polat bulut tepe han oglu"
        ),
    ),
    Culture(
        _words("""Abla Badia Dalal Farah Ghada Hanan Inaam Jamila Khulud Lubna Maysa Nawal Rabab Salma Thuraya Widad
               Yusra Zaynab Amal Buthayna Dunya Huda Israa Layla Mariam Rula"""),
        _words("""Adil Bassam Daoud Fadi Ghassan Hazem Idris Jawad Khalil Lutfi Marwan Nabil Qais Rashid Samir Tariq
               Usaid Walid Yunus Ziad Anwar Faris Hatem Imad Munir Raed"""),
        _joined("Har Qas Nab Tam Zah Sab Mar Jab Kar Ram Sal Dar Fay Lut Baq", "rani rawi ouni adi ousi ahin"),
    ),
    Culture(
        _words("""Afsaneh Azar Banafsheh Darya Elham Fereshteh Golnaz Homa Irandokht Jaleh Katayoun Laleh Mahin Nasrin
               Parisa Roya Shirin Taraneh Yasaman Ziba Anahita Forough Leila Mina Negar Soraya"""),
        _words("""Afshin Babak Cyrus Dariush Ehsan Farzad Ghobad Houman Iraj Jamshid Keyvan Manouchehr Navid Omid Payam
               Ramin Shahin Touraj Vahid Yashar Arman Behrouz Kamran Mazdak Nima Siavash"""),
        _joined(
            "Mehr Farhad Karim Rostam Shir Behnam Dari Jahan Kaveh Nader Parviz Sohrab Arash Golrokh Taher",
            "zadeh pour nia fard manesh yar",
        ),
    ),
    Culture(
        _words("""Aditi Bhavana Chitra Deepika Eesha Gauri Hema Indira Jyoti Kavita Lakshmi Meenal Nandini Oviya Padma
               Radhika Sarita Tanvi Uma Vasudha Yamini Anjali Charulata Ketaki Mrinal Shanta"""),
        _words("""Ajay Bhaskar Chetan Dinesh Eknath Ganesh Hemant Ishaan Jayant Kishore Lalit Madhav Naveen Omkar
               Prakash Raghav Sanjay Tushar Uday Vikram Yash Anand Govind Manoj Nikhil Shirish"""),
        _joined("Rama Shiva Vasu Nara Guru Deva Hari Siva Bala Soma", "nathan murthy dasan mangalam palan")
        + _joined("Palas Waren Shirol Devul Naras Mandal Satvel Vadol Jogal Ranvel Kolam Girval", "kar gaonkar"),
    ),
    Culture(
        _words("""Haruka Misaki Natsumi Sayaka Yukari Ayano Chiyoko Kanae Reiko Tomoe Shiori Momoka Hinako Kaede Makiko
               Nozomi Rumi Satomi Tamaki Wakana Yoshino Emiko Fumika Honoka Junko Kotone"""),
        _words("""Haruto Kenjiro Masato Naoki Ryosuke Shigeru Takumi Yasuhiro Daigo Eiichi Fumio Goro Hideki Isamu
               Junichi Kazuma Kohei Minoru Noboru Osamu Reiji Satoru Tetsuya Wataru Yuto Akihiko"""),
        _joined(
            "Kuro Mizu Hana Ishi Taka Yama Fuji Naka Oku Nishi Matsu Sugi Kita Aka", "mori saki gawa numa hara tani"
        )
        + _joined("Ume Kiri Tachi Fuka Ogi Haga", "bashi zono kawa da"),
    ),
    Culture(
        _words("""Aihua Baozhen Chunmei Dandan Fenglan Guiying Hongxia Jiayi Kexin Lihua Meiling Ningning Peiyu Qiaolian
               Ruolan Shufen Tingting Wanrong Xiaoyan Yulan Zhenzhen Caiyun Jinghua Lanying Suqin Yaqi"""),
        _words("""Aiguo Bingwen Changming Dawei Feihong Guoqiang Haoran Jianhong Kaiwen Liangcai Mingzhe Peng Qiming
               Renshu Shaohua Tianyu Weimin Xuefeng Yonghao Zhigang Bolin Dehua Hanwen Junjie Songtao Zhihao"""),
        _words("""Bai Cao Chai Deng Ding Duan Fang Feng Gong Guan Hao Hou Jiang Kang Lai Lei Liang Liao Luo Meng Ning
               Pan Qian Qiu Ren Shao Shen Su Tang Wei Xia Xiang Xie Xu Yan Yin Yuan Zeng Zhan Zhong"""),
    ),
    Culture(
        _words("""Abeni Adunni Bisola Damilola Ebun Folake Gbemi Ifeoma Jumoke Kehinde Lola Monife Ngozi Omolara Ronke
               Sade Temitope Uche Yetunde Zainab Amarachi Chidinma Efua Nneka Olabisi Simisola"""),
        _words("""Abiodun Babatunde Chukwuma Dayo Ekene Femi Gbenga Ikenna Jide Kolawole Lanre Nnamdi Obinna Rotimi
               Segun Taiwo Ugochi Wale Yinka Adeola Chidi Emeka Kayode Olumide Tokunbo Uzoma"""),
        _joined("Ade Olu Akin Ayo Ola Oye Fola Omo Owo", "bayo dele sanya kunle yemi niyi goke toye seun"),
    ),
    Culture(
        _words("""Ahorangi Anahera Aroha Hinemoa Hine Huia Kahurangi Kiri Kora Mahina Marama Mere Moana Ngaio Ngaire
               Pania Rangimarie Roimata Tia Tui Waimarie Whetu Ataahua Hana Leilani Manaia"""),
        _words("""Ariki Hemi Hohepa Ihaia Kauri Keoni Maaka Manaaki Matiu Nikau Paora Piripi Rangi Rawiri Rewi Tamati
               Tane Tawhiri Tiaki Timoti Wiremu Anaru Haki Kimi Mikaere Tevita"""),
        _joined(
            "Tau Manu Kahu Rangi Tama Whetu Moana Hina Kere Wai Maka Rua Pare", "nui roa tea rere iti pai kura hau"
        ),
    ),
)

MARKS = _words(
    """Pellgrave Ostermoor Quillhaven Brindlewell Tarnhope Marrowick Vantry Hexbourne Lodesmere Fernmark Corvane
    Dunmarrow Ellisande Garrowby Hollinfare Junivale Kestermoor Larkmoor Mistralen Norwethick Orrindale Pinefold
    Redmoyne Saltmarsh Thistledon Umberfield Verran Wexcombe Yarrow Zephyrell Amberlin Blackthwaite Cinderhall
    Drumlinn Eastering Foxglade Greyling Harrowdene Inglemere Jessamy Kittering Lanternley Meridale Nettlecombe
    Ottermere Pomfrey Quarlow Ravensholt"""
)

TOWNS = (
    _joined(
        "Kel Torv Marl Brae Ostr Vell Hart Quill Sten Pell Wren Cor Dray Fal Gris Hav Ing Jarl Lorn Mist Nar Orm Penn "
        "Rav Skel Tarn Ulv Vard Wyth Yar",
        "haven ford wick stead mouth moor dale holt bridge water mere gate",
    )
    + _joined(
        "Val Mont Ribe Aldo Cast Fuen Lago Mira Olm Pied Sera Torre", "mora verde lina cera nova rosa sanda tella"
    )
    + _joined("Kral Brez Dol Jav Lip Morav Oler Pod Ruz Stol Treb Zab", "ovice nica nik hrad ovo in")
    + _joined("Kuma Shira Ao Tsu Naga Aki Hoshi Mina", "zato gaoka mizaki nohama wara bara")
    + _joined("Amba Kisu Lango Mbe Naku Ota Sere Tundu", "limo ziwa ranga bela tako mari")
)

_RANKS = ("senior", "assistant", "apprentice", "chief", "freelance", "part-time", "relief")
JOBS = tuple(
    with_article(job)
    for trade in _phrases("""lens grinder, bell founder, tide surveyor, seed archivist, ferry dispatcher, organ tuner,
        map engraver, school cook, night baker, bridge inspector, violin restorer, court interpreter, beekeeper,
        glaciologist, tram driver, sign painter, orchard manager, harbour pilot, kiln technician, paper conservator,
        radio operator, toy designer, well driller, museum registrar, cheese maker, wool buyer, dental nurse,
        puppet maker, optician, accountant, illustrator, upholsterer, enameller, actuary, usher, electrician,
        oyster farmer,
        auctioneer, herbalist, insurance clerk, engineer, archaeologist, ice carver, umbrella maker, hourglass maker,
        union clerk, uniform tailor, weather observer, lock keeper, bookbinder, saddler, proofreader, stonemason,
        crane operator, soil chemist, wig maker, cellist, librarian, pharmacist, translator, tea taster, midwife,
        quarry foreman, ship chandler, thatcher, glazier, botanist, stage carpenter, chess coach, veterinarian,
        arborist, perfumer, cartographer, customs officer, watchmaker, gardener, physiotherapist, swimming teacher,
        potter""")
    for job in (trade, *(f"{rank} {trade}" for rank in _RANKS))
)
EMPLOYERS = _spaced(
    MARKS,
    _phrases("""Optics, Shipping, Glassworks, Textiles, Cartography, Nurseries, Instruments, Ceramics, Dairies,
    Engineering, Paper Mills, Insurance, Tramways, Foundry, Publishing, Breweries, Botanicals, Laboratories, Fisheries,
    Timber, Clockworks, Logistics, Seed Company, Salt Works, Water Board, Printworks, Confectionery, Theatre Trust"""),
)
SCHOOLS = _spaced(
    MARKS, _phrases("College, Polytechnic, Academy, Institute, Technical School, Conservatory, Agricultural College")
)
SUBJECTS = _spaced(
    _phrases("marine, alpine, coastal, tropical, arctic, experimental"),
    _phrases("botany, geology, acoustics, chemistry, zoology, hydrology, ecology, engineering"),
) + _spaced(
    _phrases("medieval, comparative, maritime, industrial, classical, rural"),
    _phrases("linguistics, economics, history, archaeology, law, architecture, literature, geography"),
)
BIRTHPLACES = _spaced(MARKS, _phrases("Infirmary, Maternity House, Cottage Hospital, Clinic, Hospital, Nursing Home"))
BANKS = _spaced(MARKS, _phrases("Savings Bank, Credit Union, Mutual, Trust, Building Society, Cooperative Bank"))
STREETS = _spaced(
    (
        *MARKS,
        *_words("Alder Birch Cooper Damson Elm Farrier Gable Hazel Ivy Kiln Linden Mason Poplar Rowan Sorrel Teasel"),
    ),
    _words("Lane Street Road Row Avenue Close Terrace Way Crescent Hill Court Walk Drive Square"),
)
LIBRARIES = _spaced(
    TOWNS,
    _phrases("Free Library, Public Library, Reading Room, Lending Library, Athenaeum, Town Library, Book Exchange"),
)
VENUES = _spaced(
    TOWNS,
    _phrases("""Old Granary, Guild Hall, Boathouse, Corn Exchange, Tithe Barn, Assembly Rooms, Customs House,
    Pump House, Drill Hall, Malthouse, Lantern Theatre, Net Loft, Ropeworks, Parish Hall, Signal Box"""),
)
AWARDS = _spaced(
    _phrases("""Silver Heron, Golden Lantern, Bronze Thistle, Copper Kettle, Amber Anchor, Ivory Feather, Iron Oak,
    Crystal Otter, Blue Comet, Scarlet Swift, White Hart, Green Compass, Marble Owl, Pearl Sextant, Granite Hare"""),
    _phrases("Medal, Prize, Award, Trophy, Shield, Cup, Ribbon, Plaque, Bursary"),
)
DEEDS = _spaced(
    _phrases("restoring, surveying, rescuing, repainting, rebuilding, documenting, photographing, measuring"),
    _phrases("""the harbour clock, the orchard chapel, the canal locks, the bell tower, the old tramline,
    the herring fleet, the palm house, the rope bridge, the town museum, the tidal mill,
    the stone circle, the night market, the lighthouse, the salt works, the puppet theatre, the weather station"""),
)
_COLOURS = _phrases("""dark green, pale blue, maroon, cream, mustard yellow, silver, slate grey, orange, navy blue,
    white, copper, olive, turquoise, crimson, chocolate brown, lilac""")
_MODEL_YEARS = tuple(str(year) for year in range(1989, 2023, 3))
_MAKES = _words("Talbrook Venning Ostervale Marclune Corvane-Ley Hallam Brisque Koyareed Sundvall Perrinaut")
_MODELS = _words(
    "Heron Lynx Comet Swallow Pilot Badger Corsair Minnow Falcon Rambler Tempest Otter Meteor Magpie Nomad"
)
CARS = tuple(with_article(" ".join(parts)) for parts in product(_COLOURS, _MODEL_YEARS, _MAKES, _MODELS))
PETS = tuple(
    with_article(f"{look} {animal}")
    for look, animal in product(
        _phrases("one-eyed, spotted, elderly, rescued, brown, silver, timid, enormous, grey, half-blind"),
        _phrases("""whippet, tabby cat, spaniel, cockatiel, tortoise, terrier, ferret, sheepdog, rabbit, parakeet,
        poodle, donkey, greyhound, dachshund, hedgehog, goose, pony, iguana, gecko, magpie"""),
    )
)
PET_NAMES = _joined(
    "Bram Pip Tum Nut Wig Mar Fiz Dob Tas Quib Noo Bis Pom Sor Pud Tof Wal Zin Gus Mop",
    "kin sel by low bert wick nook ley",
)
PASTIMES = _spaced(
    _phrases("collecting, restoring, sketching, painting, repairing, building, photographing, cataloguing"),
    _phrases("""wooden ducks, model lighthouses, pocket barometers, brass compasses, miniature trams, glass floats,
    paper kites, toy theatres, music boxes, weather vanes, fountain pens, river barges, lace bobbins, carousel horses,
    clay whistles, ship lanterns, chess sets, tin soldiers"""),
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_ALLERGENS = _phrases("""walnuts, penicillin, wasp stings, birch pollen, shellfish, latex, sesame, cashews, goat hair,
    mustard seed, aspirin, celery, lupin flour, horse hair, buckwheat, kiwi fruit, nickel, iodine, peaches, mugwort,
    codeine, bee stings, hazelnuts, soya, cat fur, egg white, ragweed, chamomile, sulphites, house dust""")
ALLERGENS = tuple(f"{one} and {other}" for one, other in combinations(_ALLERGENS, 2))
# A relation, and whether it is female.
RELATIONS = (
    *((word, True) for word in _phrases("older sister, younger sister, mother, aunt, grandmother, niece, stepsister")),
    *((word, False) for word in _phrases("older brother, younger brother, father, uncle, grandfather, nephew")),
)
